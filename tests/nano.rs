//! The built-in model as a user meets it.

use std::path::Path;
use std::process::Command;

fn ask(question: &str) -> String {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/nano/sample.png");
    let mut mmq = Command::new(env!("CARGO_BIN_EXE_mmq"));
    let output =
        mmq.args(["run", "-q", "--temp", "0", "-n", "64", "-p", question, "--image"]).arg(sample).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_describes_the_sample() {
    assert_eq!(
        ask("Describe the picture."),
        "a red star at the top left, a white 4 in the center and a blue 5 at the bottom.\n"
    );
}

#[test]
fn it_counts() {
    assert_eq!(ask("How many objects are there?"), "three objects.\n");
}
