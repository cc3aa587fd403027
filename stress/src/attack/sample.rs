//! Which of many like things are tried where all would take too long.

/// At most about `most` of the numbers from 1 to `total`, in order: a third of them the first, a third the last, and the
/// others evenly between.
pub fn of(total: u64, most: u64) -> Vec<u64> {
    if total <= most {
        return (1..=total).collect();
    }
    let third = (most / 3).max(1);
    let (first, last) = (third, total - third);
    let step = ((last - first) / third).max(1);
    let between = (first + step..=last).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    (1..=first).chain(between).chain(last + 1..=total).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_all_of_them() {
        assert_eq!(of(5, 8), [1, 2, 3, 4, 5]);
        assert!(of(0, 8).is_empty());
    }

    #[test]
    fn of_many_the_ends_are_tried_and_some_between() {
        assert_eq!(of(20, 6), [1, 2, 10, 18, 19, 20]);
        for (total, most) in [(2_300, 120), (9, 8), (1_000_000, 3), (10, 1)] {
            let sample = of(total, most);
            assert!(sample.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!((sample[0], sample[sample.len() - 1]), (1, total));
            assert!(sample.len() as u64 <= most + most / 2 + 2, "{total} {most}");
        }
    }
}
