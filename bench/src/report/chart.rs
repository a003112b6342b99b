//! Line charts as SVG text.

use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

use crate::error::AnyError;

const WIDTH: u32 = 620;
const HEIGHT: u32 = 300;
const TEXT: RGBColor = RGBColor(60, 60, 60);
const GRID: RGBColor = RGBColor(225, 225, 225);
/// Distinguishable with colour vision deficiency, too (Okabe and Ito).
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
];

/// How an axis maps values to places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Linear, from 0.
    Linear,
    /// Logarithmic: powers of ten at equal distances. Values must be above 0.
    Log,
    /// Quantiles: 0.9, 0.99 and 0.999 at equal distances.
    Quantile,
}

/// One line and its name in the legend.
#[derive(Debug, Clone)]
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

impl Scale {
    fn place(self, value: f64) -> f64 {
        match self {
            Scale::Linear => value,
            Scale::Log => value.log10(),
            Scale::Quantile => -(1.0 - value).log10(),
        }
    }

    fn has(self, value: f64) -> bool {
        match self {
            Scale::Linear => value.is_finite(),
            Scale::Log => value > 0.0 && value.is_finite(),
            Scale::Quantile => (0.0..1.0).contains(&value),
        }
    }

    /// Start, end and labelled points of an axis, all as places.
    fn axis(self, places: impl Iterator<Item = f64>) -> (f64, f64, Vec<f64>) {
        let (low, high) =
            places.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), place| (low.min(place), high.max(place)));
        if low > high {
            return (0.0, 1.0, vec![0.0, 1.0]);
        }
        match self {
            Scale::Linear => {
                let high = if high > 0.0 { high * 1.05 } else { 1.0 };
                let step = nice_step(high);
                (0.0, high, (0..=(high / step) as usize).map(|n| n as f64 * step).collect())
            }
            Scale::Quantile => {
                let high = high.max(1.0);
                (0.0, high, (0..=high as usize).map(|n| n as f64).collect())
            }
            Scale::Log => {
                let (low, high) = (low - 0.05, (high + 0.05).max(low + 0.3));
                let few = high - low < 2.5;
                let digits: &[f64] = if few { &[1.0, 2.0, 5.0] } else { &[1.0] };
                let decades = low.floor() as i32..=high.ceil() as i32;
                let named = decades.flat_map(|decade| digits.iter().map(move |d| f64::from(decade) + d.log10()));
                (low, high, named.filter(|place| (low..=high).contains(place)).collect())
            }
        }
    }

    fn label(self, place: f64) -> String {
        match self {
            Scale::Linear => short(place),
            Scale::Log => short(10f64.powf(place)),
            // p0, p90, p99, p99.9 …
            Scale::Quantile => {
                let decimals = (place.round() as usize).saturating_sub(2);
                format!("p{:.decimals$}", 100.0 - 100.0 / 10f64.powf(place))
            }
        }
    }
}

/// An axis with given labels, as plotters requires it.
struct Axis {
    from: f64,
    to: f64,
    named: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (place - self.from) / (self.to - self.from);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.named.clone()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.from..self.to
    }
}

/// A step of 1, 2 or 5 times a power of ten, so that at most six steps fit.
fn nice_step(high: f64) -> f64 {
    let raw = high / 6.0;
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= raw).unwrap_or(high)
}

/// 0.005, 20, 1.5k, 2M.
fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        size if size >= 1e9 => (value / 1e9, "G"),
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{value:.3}");
    format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

/// One chart. Points without a place on a scale are left out.
pub fn svg(title: &str, x_name: &str, y_name: &str, x: Scale, y: Scale, lines: &[Line]) -> Result<String, AnyError> {
    let placed: Vec<(&str, Vec<(f64, f64)>)> = lines
        .iter()
        .map(|line| {
            let points = line.points.iter().filter(|(px, py)| x.has(*px) && y.has(*py));
            (line.name.as_str(), points.map(|(px, py)| (x.place(*px), y.place(*py))).collect())
        })
        .collect();
    let all = || placed.iter().flat_map(|(_, points)| points.iter());
    let (x_low, x_high, x_named) = x.axis(all().map(|point| point.0));
    let (y_low, y_high, y_named) = y.axis(all().map(|point| point.1));
    let mut out = String::new();
    {
        let root = SVGBackend::with_string(&mut out, (WIDTH, HEIGHT)).into_drawing_area();
        let failed = |e: DrawingAreaErrorKind<_>| -> AnyError { format!("a chart could not be drawn: {e}").into() };
        let text = |size: i32| ("sans-serif", size).into_font().color(&TEXT);
        let mut chart = ChartBuilder::on(&root)
            .caption(title, text(17))
            .margin(8)
            .x_label_area_size(36)
            .y_label_area_size(62)
            .build_cartesian_2d(
                Axis { from: x_low, to: x_high, named: x_named },
                Axis { from: y_low, to: y_high, named: y_named },
            )
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(GRID.mix(0.0))
            .bold_line_style(GRID)
            .axis_style(TEXT)
            .label_style(text(14))
            .x_desc(x_name)
            .y_desc(y_name)
            .x_label_formatter(&|place| x.label(*place))
            .y_label_formatter(&|place| y.label(*place))
            .draw()
            .map_err(failed)?;
        for (n, (name, points)) in placed.into_iter().enumerate() {
            let color = COLORS[n % COLORS.len()];
            chart
                .draw_series(LineSeries::new(points, color.stroke_width(2)))
                .map_err(failed)?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        }
        if lines.len() > 1 {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE.mix(0.8))
                .label_font(text(14))
                .draw()
                .map_err(failed)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_name_round_numbers() {
        let labels = |scale: Scale, places: &[f64]| -> Vec<String> {
            let (.., named) = scale.axis(places.iter().map(|value| scale.place(*value)));
            named.into_iter().map(|place| scale.label(place)).collect()
        };
        assert_eq!(labels(Scale::Linear, &[0.0, 2_450_000.0]), ["0", "500k", "1M", "1.5M", "2M", "2.5M"]);
        assert_eq!(labels(Scale::Log, &[0.4, 30.0]), ["0.5", "1", "2", "5", "10", "20"]);
        assert_eq!(labels(Scale::Log, &[0.05, 3000.0]), ["0.1", "1", "10", "100", "1k"]);
        assert_eq!(labels(Scale::Quantile, &[0.0, 0.9995]), ["p0", "p90", "p99", "p99.9"]);
        assert_eq!(labels(Scale::Linear, &[]), ["0", "1"]);
    }

    #[test]
    fn a_chart_is_svg_that_needs_nothing_else() {
        let line = Line { name: "a & b".to_owned(), points: vec![(0.5, 1.0), (0.99, 7.0), (1.0, 9.0)] };
        let svg = svg("latency <of> all", "", "ms", Scale::Quantile, Scale::Log, &[line.clone(), line]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("a &amp; b") && svg.contains("latency &lt;of&gt; all"), "{svg}");
        assert_eq!(svg.matches("href").count(), 0);
    }
}
