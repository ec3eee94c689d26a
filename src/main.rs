//! The `mmq` program.

fn main() -> std::process::ExitCode {
    mmq::cli::main()
}
