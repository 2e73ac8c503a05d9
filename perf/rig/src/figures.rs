//! What was measured: figures of one run, from what the generators print.

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// Latencies of one direction, in microseconds, from the client's side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p99_9_us: f64,
    pub(crate) max_us: f64,
}

/// What a generator says of its run.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClientFigures {
    pub(crate) requests: u64,
    pub(crate) iops: f64,
    pub(crate) read: Option<Latency>,
    pub(crate) write: Option<Latency>,
    pub(crate) client_cpu_us: f64,
}

/// One run of one server under one workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    pub(crate) requests: u64,
    pub(crate) iops: f64,
    /// Millions of bytes each second.
    pub(crate) mb_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) read: Option<Latency>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) write: Option<Latency>,
    /// CPU time of the server for each request, user and system, all threads and descendants.
    pub(crate) server_cpu_us: f64,
    pub(crate) client_cpu_us: f64,
    /// The largest that was seen.
    pub(crate) memory_kib: u64,
    pub(crate) voluntary_switches: u64,
    pub(crate) involuntary_switches: u64,
}

impl Figures {
    /// A percentile of the slower direction.
    pub(crate) fn slower(&self, of: fn(&Latency) -> f64) -> f64 {
        self.read.iter().chain(&self.write).map(of).fold(0.0, f64::max)
    }
}

#[derive(Deserialize)]
struct Bench {
    client_cpu_us_per_request: f64,
    read: Option<BenchDirection>,
    write: Option<BenchDirection>,
}

#[derive(Deserialize)]
struct BenchDirection {
    requests: u64,
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    #[serde(alias = "p999_us")]
    p99_9_us: f64,
    max_us: f64,
}

/// The JSON of `ringnbd bench --json`.
pub(crate) fn of_bench(json: &str) -> anyhow::Result<ClientFigures> {
    let bench: Bench = serde_json::from_str(json).context("ringnbd bench printed something else")?;
    let both = || bench.read.iter().chain(&bench.write);
    let latency = |direction: &BenchDirection| Latency {
        p50_us: direction.p50_us,
        p99_us: direction.p99_us,
        p99_9_us: direction.p99_9_us,
        max_us: direction.max_us,
    };
    Ok(ClientFigures {
        requests: both().map(|direction| direction.requests).sum(),
        iops: both().map(|direction| direction.iops).sum(),
        read: bench.read.as_ref().map(latency),
        write: bench.write.as_ref().map(latency),
        client_cpu_us: bench.client_cpu_us_per_request,
    })
}

#[derive(Deserialize)]
struct Fio {
    jobs: Vec<FioJob>,
}

#[derive(Deserialize)]
struct FioJob {
    error: i32,
    read: FioDirection,
    write: FioDirection,
    /// Milliseconds.
    job_runtime: f64,
    /// Percent of the runtime.
    usr_cpu: f64,
    sys_cpu: f64,
}

#[derive(Deserialize)]
struct FioDirection {
    total_ios: u64,
    iops: f64,
    clat_ns: FioLatency,
}

#[derive(Deserialize)]
struct FioLatency {
    max: f64,
    #[serde(default)]
    percentile: std::collections::BTreeMap<String, f64>,
}

/// The JSON of `fio --output-format=json --group_reporting`, one job.
pub(crate) fn of_fio(json: &str) -> anyhow::Result<ClientFigures> {
    // fio may print notes of its engines before the report.
    let json = json.find('{').map_or(json, |start| &json[start..]);
    let fio: Fio = serde_json::from_str(json).context("fio printed something else")?;
    let job = fio.jobs.first().context("fio reports no job")?;
    if job.error != 0 {
        anyhow::bail!("fio reports error {}", job.error);
    }
    let latency = |direction: &FioDirection| -> anyhow::Result<Option<Latency>> {
        if direction.total_ios == 0 {
            return Ok(None);
        }
        let percentile = |key| {
            let value = direction.clat_ns.percentile.get(key);
            value.map(|ns| ns / 1e3).with_context(|| format!("fio reports no percentile {key}"))
        };
        Ok(Some(Latency {
            p50_us: percentile("50.000000")?,
            p99_us: percentile("99.000000")?,
            p99_9_us: percentile("99.900000")?,
            max_us: direction.clat_ns.max / 1e3,
        }))
    };
    let requests = job.read.total_ios + job.write.total_ios;
    Ok(ClientFigures {
        requests,
        iops: job.read.iops + job.write.iops,
        read: latency(&job.read)?,
        write: latency(&job.write)?,
        client_cpu_us: (job.usr_cpu + job.sys_cpu) / 100.0 * job.job_runtime * 1e3 / float(requests.max(1)),
    })
}

/// Counts as figures for people.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_of_bench_are_added_up() {
        let json = r#"{"seconds": 1.0, "bytes": 4096, "client_cpu_us_per_request": 1.5,
            "read": {"requests": 70, "iops": 70.0, "p50_us": 10.0, "p90_us": 15.0, "p99_us": 20.0,
                     "p99_9_us": 30.0, "p99_99_us": 35.0, "max_us": 40.0},
            "write": {"requests": 30, "iops": 30.5, "p50_us": 11, "p99_us": 50, "p999_us": 60, "max_us": 70}}"#;
        let figures = of_bench(json).expect("bench's own form");
        assert_eq!((figures.requests, figures.iops, figures.client_cpu_us), (100, 100.5, 1.5));
        assert_eq!(figures.read.map(|read| (read.p50_us, read.p99_9_us)), Some((10.0, 30.0)));
        assert_eq!(figures.write.map(|write| (write.p99_us, write.max_us)), Some((50.0, 70.0)));
        assert!(of_bench("a table").is_err());
    }

    #[test]
    fn fios_nanoseconds_become_microseconds() {
        let json = r#"note: something
            {"fio version": "fio-3", "jobs": [{"error": 0, "job_runtime": 1000, "usr_cpu": 25.0, "sys_cpu": 25.0,
            "read": {"total_ios": 1000, "iops": 1000.0, "clat_ns": {"max": 9000, "percentile":
                {"50.000000": 1000, "99.000000": 2000, "99.900000": 3000}}},
            "write": {"total_ios": 0, "iops": 0.0, "clat_ns": {"max": 0}}}]}"#;
        let figures = of_fio(json).expect("fio's own form");
        assert_eq!((figures.requests, figures.client_cpu_us, figures.write), (1000, 500.0, None));
        let read = figures.read.expect("there were reads");
        assert_eq!((read.p50_us, read.p99_us, read.p99_9_us, read.max_us), (1.0, 2.0, 3.0, 9.0));
        let failed = json.replace("\"error\": 0", "\"error\": 5");
        assert!(of_fio(&failed).is_err_and(|error| error.to_string().contains('5')));
    }
}
