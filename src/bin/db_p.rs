//! The program `db-p`: the same as `bullwork preset`.

fn main() -> std::process::ExitCode {
    bullwork::cli::preset_main()
}
