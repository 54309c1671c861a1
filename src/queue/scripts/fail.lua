-- Ends a failed attempt (wire format 6.7, but in one script, with the token checked before anything is written).
--
-- KEYS  1-11 the queue, 12 job, 13 lock, 14 order to cancel
-- ARGV  1-3 header, 4 id, 5 token, 6 attemptsMade, 7 stacktrace as JSON, 8 reason, 9 message,
--       10 what next: 'final', 'delay' or 'now', 11 due time and 12 low bits of a delay, 13 '1': lifo,
--       14 count and 15 age to keep, 16 minutes to count in
-- before: job active, locked by the token
-- after:  attemptsMade, stacktrace, failedReason written; job in failed (or gone), in delayed, or in the line
-- answers {0} failed for good, {1} delayed, {2} waiting again
--
-- A job that somebody ordered to cancel is not tried again.
local q = open_queue(1, ARGV[1], ARGV[2])
local id, job = ARGV[4], KEYS[12]
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local code = ownership(job, KEYS[13], ARGV[5])
if code < 0 then
  return {code}
end
code = leave_active(q, id, KEYS[13])
if code < 0 then
  return {code}
end
redis.call('HSET', job, 'attemptsMade', ARGV[6], 'stacktrace', ARGV[7], 'failedReason', ARGV[8])
if ARGV[10] == 'final' or redis.call('EXISTS', KEYS[14]) == 1 then
  finish(q, q.failed, id, ARGV[3], 'failedReason', ARGV[8], tonumber(ARGV[14]), tonumber(ARGV[15]))
  count_end(q, 'failed', ARGV[3], tonumber(ARGV[16]))
  redis.call('DEL', KEYS[14])
  redis.call('PUBLISH', q.prefix .. 'failed', ARGV[9])
  return {0}
elseif ARGV[10] == 'delay' then
  local score = delayed_score(tonumber(ARGV[11]), tonumber(ARGV[12]))
  redis.call('ZADD', q.delayed, score, id)
  announce_delayed(q, tonumber(score) / 4096)
  return {1}
end
push(q, id, number_of(redis.call('HGET', job, 'priority'), 0), ARGV[13] == '1')
return {2}
