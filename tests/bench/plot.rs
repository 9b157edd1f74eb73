//! Bars of rates as SVG: one group a work, one bar a system.

use std::collections::BTreeMap;
use std::fmt::Write as _;

const ROW: f64 = 18.0;
const LABELS: f64 = 330.0;
const BARS: f64 = 420.0;

pub(crate) fn bars(groups: &BTreeMap<&str, Vec<(&str, f64)>>) -> String {
    let best = groups.values().flatten().map(|(_, rate)| *rate).fold(1.0, f64::max);
    let rows: usize = groups.values().map(|systems| systems.len()).sum();
    let height = rows as f64 * ROW + groups.len() as f64 * ROW / 2.0 + ROW;
    let width = LABELS + BARS + 90.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut y = ROW / 2.0;
    for (work, systems) in groups {
        for (system, rate) in systems {
            let (length, middle) = (rate / best * BARS, y + ROW * 0.7);
            let color = if *system == "gapless" { "#1f6feb" } else { "#b0b8c1" };
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{work}: {system}</text><rect x=\"{LABELS}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\" fill=\"{color}\"/><text x=\"{:.1}\" y=\"{middle}\">{rate:.0}/s</text>",
                LABELS - 6.0,
                y + 2.0,
                ROW - 4.0,
                LABELS + length + 5.0,
            );
            y += ROW;
        }
        y += ROW / 2.0;
    }
    svg + "</svg>\n"
}
