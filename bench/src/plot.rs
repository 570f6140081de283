//! Plots, as SVG.

use crate::error::{Error, Result};
use crate::figures::{Cost, Items, Load, QUANTILES};
use crate::rings::Rate;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::{
    ChartBuilder, Color, IntoDrawingArea, LineSeries, PathElement, RGBColor, SVGBackend, WHITE,
};
use std::path::Path;

const SIZE: (u32, u32) = (800, 450);

/// Colours that colour-blind readers can tell apart (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
];

/// A line in a plot.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Labels of both axes.
struct Labels {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    /// Title of the x axis.
    base: f64,
    /// Label of a place on the x axis.
    tick: fn(&f64) -> String,
}

/// Plots times of single items, by the part of them that took at most that long.
pub fn latency(folder: &Path, items: &[Items]) -> Result<()> {
    let checked = items.iter().filter(|items| items.load.checksums);
    let series = checked.filter_map(|items| {
        let latency = items.latency.as_ref()?;
        // One in that many takes longer.
        let points =
            QUANTILES.iter().zip(latency.at).map(|(part, at)| (1.0 / (1.0 - part), at / 1e3));
        Some(Series {
            name: format!("{}, {} bytes", items.way, items.load.bytes),
            points: points.collect(),
        })
    });
    let labels = Labels {
        title: "From push to pop",
        x: "one item in so many takes longer",
        y: "microseconds",
        base: 10.0,
        tick: |x| format!("{x:.0}"),
    };
    draw(&folder.join("latency.svg"), &labels, &series.collect::<Vec<_>>())
}

/// Plots bytes per second, by the size of an item.
pub fn throughput(folder: &Path, items: &[Items]) -> Result<()> {
    let mut series: Vec<Series> = Vec::new();
    for items in items {
        let Load { bytes, batch, checksums } = items.load;
        let checksums = if checksums { "" } else { ", no checksums" };
        let name = format!("{}, batches of {batch}{checksums}", items.way);
        let point = (bytes as f64, items.rate * bytes as f64 / 1e6);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name, points: vec![point] }),
        }
    }
    // A point alone is no line.
    series.retain(|series| series.points.len() > 1);
    let labels = Labels {
        title: "Throughput",
        x: "bytes of an item",
        y: "MB/s",
        base: 2.0,
        tick: |x| format!("{x:.0}"),
    };
    draw(&folder.join("throughput.svg"), &labels, &series)
}

/// Plots an item's cost, by the size of the ring.
pub fn costs(folder: &Path, costs: &[Cost]) -> Result<()> {
    let mut series: Vec<Series> = Vec::new();
    for cost in costs {
        let name = format!("{} items in it", cost.items);
        let point = (cost.size as f64, (cost.push + cost.pop) / 1e3);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name, points: vec![point] }),
        }
    }
    let labels = Labels {
        title: "An item pushed and popped",
        x: "MiB of the ring",
        y: "microseconds",
        base: 2.0,
        tick: |x| format!("{:.0}", x / f64::from(1 << 20)),
    };
    draw(&folder.join("size.svg"), &labels, &series)
}

/// Plots requests per second, by the number of rings that have some.
pub fn rings(folder: &Path, rates: &[Rate]) -> Result<()> {
    let mut series: Vec<Series> = Vec::new();
    for rate in rates {
        let name = format!("writes of {} bytes", rate.bytes);
        let point = (rate.active as f64, rate.per_second / 1e6);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name, points: vec![point] }),
        }
    }
    let labels = Labels {
        title: "Many rings on one thread",
        x: "busy rings",
        y: "million requests/s, all rings",
        base: 10.0,
        tick: |x| format!("{x:.0}"),
    };
    draw(&folder.join("rings.svg"), &labels, &series)
}

fn draw(path: &Path, labels: &Labels, series: &[Series]) -> Result<()> {
    let points = || series.iter().flat_map(|series| &series.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points()
            .map(of)
            .fold((f64::MAX, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        (low * 0.8)..(high * 1.25)
    };
    let xs = range(|point| point.0).log_scale().base(labels.base);
    let ys = range(|point| point.1);
    // Small differences must look small.
    let ys = (ys.start.min(ys.end / 20.0)..ys.end).log_scale();
    let failed = |reason: String| Error::Plot { what: path.display().to_string(), reason };
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|e| failed(e.to_string()))?;
    let mut chart = ChartBuilder::on(&area)
        .caption(labels.title, ("sans-serif", 20))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(xs, ys)
        .map_err(|e| failed(e.to_string()))?;
    chart
        .configure_mesh()
        .x_desc(labels.x)
        .y_desc(labels.y)
        .x_label_formatter(&labels.tick)
        .draw()
        .map_err(|e| failed(e.to_string()))?;
    for (line, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))
            .map_err(|e| failed(e.to_string()))?
            .label(&line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(128, 128, 128))
        .draw()
        .map_err(|e| failed(e.to_string()))?;
    area.present().map_err(|e| failed(e.to_string()))
}
