//! Series of measurements and what is said about them.

/// Named series of values, in the order in which they first came.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(String, Vec<f64>)>);

impl Figures {
    pub(crate) fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value),
            None => self.0.push((name.to_owned(), vec![value])),
        }
    }

    /// The median of a series, if there is anything in it.
    pub(crate) fn median(&self, name: &str) -> Option<f64> {
        let (_, values) = self.0.iter().find(|(known, _)| known == name)?;
        Some(Summary::of(values).median)
    }

    /// A table of all series.
    pub(crate) fn print(&self, unit: &str) {
        println!("\n{unit:<48} {:>9} {:>9} {:>9}", "min", "p50", "p99");
        for (name, values) in &self.0 {
            let summary = Summary::of(values);
            println!(
                "{name:<48} {:>9.1} {:>9.1} {:>9.1}",
                summary.least, summary.median, summary.p99
            );
        }
    }
}

/// What a series comes down to. Of an empty one, all is `NaN`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
}

impl Summary {
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            count: sorted.len(),
            least: percentile(&sorted, 0.0),
            median: percentile(&sorted, 50.0),
            p99: percentile(&sorted, 99.0),
            most: percentile(&sorted, 100.0),
        }
    }
}

/// A percentile of sorted values, by the nearest rank.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a small count, never negative"
    )]
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    let index = rank.saturating_sub(1).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let values: Vec<f64> = (1..=50).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.0), 1.0);
        assert_eq!(percentile(&values, 50.0), 25.0);
        assert_eq!(percentile(&values, 99.0), 50.0);
        assert!(percentile(&[], 50.0).is_nan());
    }
}
