//! Errors as one line of text.

use std::error::Error;
use std::fmt;

/// Shows an error with everything that led to it: `what: why: why that`. For logs; clients see
/// less.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeError;

    #[test]
    fn every_cause_is_shown_once() {
        let inner = NodeError::Failed {
            step: "opening".to_owned(),
            source: "no such file".into(),
        };
        let outer = NodeError::Failed {
            step: "starting".to_owned(),
            source: Box::new(inner),
        };
        assert_eq!(Chain(&outer).to_string(), "starting: opening: no such file");
    }
}
