//! The `ringnbd` program: parse the words, run the subcommand, exit with its code.

fn main() -> std::process::ExitCode {
    ringnbd::cli::main()
}
