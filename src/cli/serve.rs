//! `ringnbd serve`: the options, and the life of a server from start to exit code.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::access::{Access, RULES};
use super::tls::Tls;
use super::value::{AutoOff, AutoOr, When, ZeroCopy};
use super::{log, report::Report, start, value, watch};
use crate::backend::ExportSpec;
use crate::net::listen::Listen;

const EXPORTS: &str = "\
Exports, [NAME=]BACKEND[,key=value...]:
  PATH               a regular file or a block device, whichever is there
  file:PATH          a regular file
  block:PATH         a block device
  memory:SIZE        memory that is gone when the server ends
  null:SIZE          reads zeroes and forgets writes: measures the path itself
  nbd://HOST/EXPORT  an export of another server, by any NBD URI; nbds for TLS
  faulty:SEED:BACKEND  another backend with failures, repeatable, to test clients
Without NAME= the export is the default one, \"\". A comma in a path is written
twice. SIZE is bytes, or a number with K, M, G, T or P (binary).

Keys of an export:
  readonly=on        refuse writes
  offset=SIZE        first byte that is served
  size=SIZE          bytes served from there
  description=TEXT   text for those who list exports
  tls=require        serve it through TLS only; without TLS it is not listed
  hidden=on          leave it out of lists; it opens by name
  writethrough=on    every write is durable before its reply
  writes=auto        who does buffered writes: ring, thread, inline (the shard)
                     or adaptive (the shard, threads once one was held up);
                     auto is ring where the file system lets it, else adaptive
  direct=on          O_DIRECT, around the page cache
  iopoll=on          with direct=on: look for completions instead of taking
                     interrupts; for devices with poll queues (NVMe)
  strict=on          refuse requests that are not aligned to the block size
  lock=off           do not keep other writers out
  rotational=on|off  what the disk is; without it the kernel is asked

Keys of another server's export:
  connections=N      connections of each shard, if that server says that several
                     are safe [1]
  reconnect-delay=S  seconds that requests wait for a lost connection [60]
  open-timeout=S     seconds to wait for a server that is still starting [0]
  request-timeout=S  seconds without an answer after which it counts as gone;
                     0 is never [0]

Signals:
  SIGTERM, SIGINT    drain: finish what is in flight; a second one ends at once
  SIGUSR1            print the latency table on standard error
  SIGHUP             load the certificates again, for connections from then on

Environment:
  RINGNBD_LOG        filter of the log, such as ringnbd=debug
  LISTEN_FDS         sockets to serve, as systemd and libnbd pass them
";

const EXAMPLES: &str = "\
Examples:
  ringnbd serve disk.img
  ringnbd serve a=disk1.img b=block:/dev/loop0 memory:1G
  ringnbd serve -l unix:/run/nbd.sock -r disk.img,direct=on
  ringnbd serve -l 127.0.0.1:0 memory:1G --run 'nbdinfo \"$uri\"'
  ringnbd serve disk=nbd://old-server/disk,reconnect-delay=300
  ringnbd serve a=1.img b=2.img --deny ip=10.0.9.0/24 --allow export=a --allow right=read
  ringnbd serve disk.img --hdr-log latency.hlog --hgrm latency --stats";

/// Serve files, block devices, memory or other servers' exports to NBD clients
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXPORTS}\n{RULES}\n{EXAMPLES}"))]
pub(super) struct Serve {
    /// What to serve; several exports need different names (all about them: --help)
    #[arg(required = true, value_name = "[NAME=]BACKEND[,key=value...]", value_parser = ExportSpec::parse)]
    pub(super) exports: Vec<ExportSpec>,

    /// Where to listen: HOST:PORT, [IPV6]:PORT, tcp:HOST:PORT, unix:PATH or vsock:CID:PORT; may be repeated
    ///
    /// An empty HOST is every address of the machine, port 0 any free port (see --print-uri). Without
    /// this option and without inherited sockets the server listens on tcp:127.0.0.1:10809.
    #[arg(short, long, value_name = "ADDR", value_parser = Listen::parse, help_heading = "Network")]
    pub(super) listen: Vec<Listen>,

    /// Print an NBD URI for each listener and export on standard output, once the server is ready
    #[arg(long, help_heading = "Network")]
    pub(super) print_uri: bool,

    /// Refuse writes to all exports
    #[arg(short, long, help_heading = "Protocol")]
    pub(super) read_only: bool,

    /// Greet with the oldstyle handshake, for clients from before 2011; needs exactly one export
    #[arg(long, help_heading = "Protocol")]
    pub(super) oldstyle: bool,

    #[command(flatten)]
    pub(super) tls: Tls,

    #[command(flatten)]
    pub(super) access: Access,

    /// Threads that serve, each with a ring of its own; auto is one for each processor allowed
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = value::auto_or_count, help_heading = "Limits")]
    pub(super) shards: AutoOr,

    /// Let the kernel move the shards' threads between processors
    #[arg(long, help_heading = "Limits")]
    pub(super) no_pin: bool,

    /// Look for work up to 50 us before each sleep: saves the wake-up at low depth, costs processor time
    ///
    /// auto looks while at least half of the looks find something, and hardly ever when they do not.
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", help_heading = "Limits")]
    pub(super) poll: When,

    /// Let a kernel thread for each shard take what it submits, without system calls (SQPOLL)
    ///
    /// For machines with processors to spare: the thread burns one until nothing was submitted for this long.
    #[arg(long, value_name = "IDLE", value_parser = value::duration_above_zero, help_heading = "Limits")]
    pub(super) sqpoll: Option<Duration>,

    /// Let the kernel look at network cards for so long before a shard sleeps (NAPI busy polling, Linux 6.9)
    ///
    /// Saves the interrupt on real cards, such as 50us; a loopback has none. Beside it --poll looks at the ring.
    #[arg(long, value_name = "TIME", value_parser = value::duration_above_zero, help_heading = "Limits")]
    pub(super) busy_poll: Option<Duration>,

    /// How large reads are answered that the page cache holds
    ///
    /// auto: without a buffer of ours, by sendfile between machines and from a mapping of the file within
    /// one. off: read into a buffer and sent. map, sendfile: this one everywhere. A write that overlaps a
    /// read in flight may show in it, as the protocol allows.
    #[arg(long, value_name = "HOW", value_enum, default_value = "auto", help_heading = "Limits")]
    pub(super) zero_copy: ZeroCopy,

    /// Send large replies to other machines without a copy (SENDMSG_ZC), until the kernel says that it made one
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", help_heading = "Limits")]
    pub(super) send_zc: AutoOff,

    /// Connections at a time; more are turned away
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Limits")]
    pub(super) max_connections: u32,

    /// Requests in flight for each connection; at the limit its socket is not read
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Limits")]
    pub(super) window: u32,

    /// Time that a client has to choose an export
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = value::duration_above_zero, help_heading = "Limits")]
    pub(super) handshake_timeout: Duration,

    /// Time that connections have to finish after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = value::duration, help_heading = "Limits")]
    pub(super) drain_timeout: Duration,

    /// Write the process id here once the server is ready; removed at exit
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub(super) pid_file: Option<PathBuf>,

    /// Run a shell command with $uri, $unixsocket and $port set; end when it ends, with its status
    ///
    /// $uri names the default export if there is one. A SIGTERM or SIGINT is passed on to the command.
    #[arg(long, value_name = "CMD", help_heading = "Process")]
    pub(super) run: Option<String>,

    /// End when the process that started the server ends
    #[arg(long, help_heading = "Process")]
    pub(super) exit_with_parent: bool,

    /// Write service times by export and command here: HdrHistogram interval log V2
    #[arg(long, value_name = "FILE", help_heading = "Measuring")]
    pub(super) hdr_log: Option<PathBuf>,

    /// Length of an interval of the log
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = value::duration_above_zero, requires = "hdr_log", help_heading = "Measuring")]
    pub(super) hdr_interval: Duration,

    /// At exit write EXPORT.COMMAND.hgrm files here: service time by percentile (see ringnbd plot)
    #[arg(long, value_name = "DIR", help_heading = "Measuring")]
    pub(super) hgrm: Option<PathBuf>,

    /// At exit print the latency table on standard error (so does -v)
    #[arg(long, help_heading = "Measuring")]
    pub(super) stats: bool,

    /// Give all histograms so far, as one HdrHistogram interval log, to whoever connects to this unix socket
    ///
    /// ringnbd bench --stats-socket reads it, to say where the time of its requests went; so does
    /// socat - UNIX-CONNECT:PATH.
    #[arg(long, value_name = "PATH", help_heading = "Measuring")]
    pub(super) stats_socket: Option<PathBuf>,

    /// The form of the log
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text", help_heading = "Log")]
    log_format: log::Format,

    /// Say more: what the kernel can do, connections; twice, everything
    #[arg(short, long, action = ArgAction::Count, help_heading = "Log")]
    verbose: u8,

    /// Say only what is wrong
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Log")]
    quiet: bool,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let verbosity = if self.quiet { -1 } else { i8::try_from(self.verbose.min(2)).unwrap_or(2) };
        log::start(self.log_format, verbosity)?;
        // Before anything that takes time: a parent that ends meanwhile must not be missed.
        let events = watch::Events::listen(self.exit_with_parent)?;
        let mut report = Report::open(&self)?;
        let running = start::start(self, &events, &mut report, verbosity > 0)?;
        running.watch(events, report)
    }

    /// Whether the table is printed at exit.
    pub(super) fn wants_table(&self) -> bool {
        self.stats || self.verbose > 0
    }
}
