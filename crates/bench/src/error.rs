//! Why something cannot be measured here.

use thiserror::Error;

/// Why a back end, and what is compared with it, is not available: a sentence, which stands in place of
/// the figure.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct Unavailable(String);

impl Unavailable {
    /// With the sentence.
    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// What failed, and how.
    pub(crate) fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}

/// As the result of each block: a side that fails is left out from there on.
pub type Measured<T> = Result<T, Unavailable>;
