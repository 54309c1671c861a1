//! The program `bull-repl`: the same as `bullwork repl`.

fn main() -> std::process::ExitCode {
    bullwork::cli::repl_main()
}
