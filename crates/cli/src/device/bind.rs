//! `offmap device bind` and `unbind`: what was done, a line for each step.

/// The steps as text.
pub(crate) fn lines(steps: Vec<String>) -> String {
    steps.iter().map(|step| format!("{step}\n")).collect()
}
