//! The program `bullwork`.

fn main() -> std::process::ExitCode {
    bullwork::cli::main()
}
