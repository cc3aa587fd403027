//! `mitosis-lean`: see `mitosis_stress::lean`.

fn main() -> std::process::ExitCode {
    mitosis_stress::lean::program::main()
}
