//! `mitosis-stress`: see the library's front page.

fn main() -> std::process::ExitCode {
    mitosis_stress::cli::main()
}
