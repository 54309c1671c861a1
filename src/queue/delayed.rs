//! Jobs that wait for their time (wire format §6.2, §6.8, §6.9).

use super::scripts::NO_MORE;
use super::{Queue, QueueError, scripts};
use crate::clock::Millis;

/// The 12 bits that order jobs due at the same millisecond, for a job put off again: JavaScript's
/// `id & 0xfff`, which is 0 for what is no number.
pub(super) fn low_bits(id: &str) -> u32 {
    let text = id.trim();
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).ok().map(|n| n as f64);
    let number = match text.get(..2) {
        Some("0x" | "0X") => radix(&text[2..], 16),
        Some("0o" | "0O") => radix(&text[2..], 8),
        Some("0b" | "0B") => radix(&text[2..], 2),
        // Rust reads "inf" and "nan" as well.
        _ if text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b)) => text.parse().ok(),
        _ => None,
    };
    let number = number.filter(|n: &f64| n.is_finite()).unwrap_or(0.0).trunc();
    number.rem_euclid(4096.0) as u32
}

impl Queue {
    /// Moves every delayed job that is due into the line, and tells when the next one is due.
    ///
    /// # Errors
    /// [`QueueError::WrongType`], or Redis's.
    pub async fn promote_due(&self) -> Result<Option<Millis>, QueueError> {
        loop {
            let mut answer = self.run("", &self.call(&scripts::PROMOTE_DUE, NO_MORE)).await?;
            match answer.code {
                0 => return Ok(None),
                1 => {
                    let score = answer.text()?;
                    let score: f64 = score.parse().map_err(|_| QueueError::Answer(format!("`{score}` is no score")))?;
                    // Low bits above 0 make it due a millisecond later.
                    return Ok(Some((score / 4096.0).ceil() as Millis));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_bits_are_what_javascript_makes_of_the_id() {
        for (id, bits) in [("1", 1), ("4096", 0), ("custom", 0), ("12abc", 0), ("0x10", 16), ("1e3", 1000), ("3.9", 3)] {
            assert_eq!(low_bits(id), bits, "{id}");
        }
        for (id, bits) in [("-1", 4095), ("99999999999", 2047), ("", 0), ("inf", 0), ("NaN", 0), (" 7 ", 7), ("é", 0)] {
            assert_eq!(low_bits(id), bits, "{id}");
        }
    }
}
