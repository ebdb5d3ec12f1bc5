//! A curve as CSV (RFC 4180). Pure.

use super::Curve;
use crate::text::csv_field;

/// Header row, and a row for each point, oldest first.
pub fn of(curve: &Curve) -> String {
    let mut text = String::new();
    let fixed = ["time", "run", "attempt", "checkpoint"].into_iter().map(str::to_owned);
    row(&mut text, fixed.chain(curve.metrics.iter().map(|name| csv_field(name))));
    for point in &curve.points {
        let fixed = [
            point.at.to_string(),
            csv_field(&curve.run),
            point.group.to_string(),
            csv_field(point.checkpoint.as_deref().unwrap_or_default()),
        ];
        let values = point
            .values
            .iter()
            .map(|value| value.and_then(serde_json::Number::from_f64).map_or_else(String::new, |n| n.to_string()));
        row(&mut text, fixed.into_iter().chain(values));
    }
    text
}

fn row(text: &mut String, fields: impl Iterator<Item = String>) {
    for (i, field) in fields.enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(&field);
    }
    text.push_str("\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{time::Timestamp, training::CurvePoint};

    #[test]
    fn what_would_break_a_row_is_quoted_and_names_are_no_formulas() {
        let point = |at, checkpoint: Option<&str>, values: &[Option<f64>]| CurvePoint {
            at: Timestamp::from_millis(at),
            group: 2,
            checkpoint: checkpoint.map(str::to_owned),
            values: values.to_vec(),
        };
        let curve = Curve {
            run: "a, \"b\"".into(),
            metrics: vec!["=loss".into(), "top\n5".into()],
            points: vec![
                point(1_795_492_872_123, Some("checkpoint_1"), &[Some(0.1), None]),
                point(1_795_492_873_000, Some("@c;1"), &[Some(1e300), Some(-0.0)]),
            ],
            ..Curve::default()
        };
        let text = of(&curve);
        let mut lines = text.split("\r\n");
        assert_eq!(lines.next(), Some("time,run,attempt,checkpoint,'=loss,\"top\n5\""));
        assert_eq!(lines.next(), Some("2026-11-24T04:01:12.123Z,\"a, \"\"b\"\"\",2,checkpoint_1,0.1,"));
        assert!(lines.next().is_some_and(|line| line.ends_with(",2,\"'@c;1\",1e+300,-0.0")));
        assert_eq!((lines.next(), lines.next()), (Some(""), None));
    }
}
