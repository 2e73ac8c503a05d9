//! From options to a server that is ready: sockets, exports, shards, then the word that it is so.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use sd_notify::NotifyState;

use super::descriptors;
use super::pid_file::PidFile;
use super::report::Report;
use super::run::{self, Environment};
use super::serve::Serve;
use super::stats_socket::StatsSocket;
use super::value::AutoOff;
use super::watch::{self, Event, Events, Running};
use crate::backend::ExportSpec;
use crate::net::listen::{self, Listen, Listener, PORT};
use crate::server::{Config, Limits, Sending, Server};

/// Connections that the kernel keeps until they are accepted; it lowers this to `net.core.somaxconn`.
/// A burst of clients at boot is larger than the traditional 128.
const BACKLOG: i32 = 1024;

/// Starts what `serve` asks for. When this returns, clients can connect, and whoever waits for
/// readiness (systemd, `--pid-file`, `--print-uri`, `--run`) knows.
pub(super) fn start(
    mut serve: Serve,
    events: &Events,
    report: &mut Report,
    verbose: bool,
) -> anyhow::Result<Running> {
    descriptors::make_room(serve.max_connections, serve.exports.len());
    let encryption = serve.tls.encryption()?;
    let listeners = listeners(&serve.listen)?;
    let stats_socket = serve.stats_socket.as_deref().map(StatsSocket::bind).transpose()?;
    for export in &mut serve.exports {
        export.options.readonly |= serve.read_only;
    }
    let names = Names::of(&serve);
    let environment = Environment::of(&listeners, |listener| names.preferred(listener));
    let uris = names.all(&listeners);
    let places: Vec<_> = listeners.iter().map(|listener| listener.bound.to_string()).collect();
    let config = Config {
        exports: serve.exports,
        listeners,
        shards: serve.shards.0,
        pin: !serve.no_pin,
        poll: serve.poll.into(),
        sqpoll: serve.sqpoll,
        busy_poll: serve.busy_poll,
        sending: Sending { zero_copy: serve.zero_copy.into(), send_zc: serve.send_zc == AutoOff::Auto },
        oldstyle: serve.oldstyle,
        rules: serve.access.rules,
        encryption: encryption.clone(),
        limits: Limits {
            connections_max: serve.max_connections,
            window: serve.window,
            handshake_timeout: serve.handshake_timeout,
            drain_timeout: serve.drain_timeout,
            ..Limits::default()
        },
    };
    let server = Server::start(config)?;
    for place in &places {
        tracing::info!("listening on {place}");
    }
    if verbose {
        for line in server.capabilities().lines() {
            tracing::info!("{line}");
        }
    }
    report.begin(server.export_names())?;
    let stats_socket = stats_socket.map(|socket| socket.answer(server.export_names(), events.sender()));
    let stats_socket = stats_socket.transpose()?.flatten();
    let (ended, to_main) = (server.ended(), events.sender());
    watch::spawn("end", move || {
        ended.wait();
        let _ = to_main.send(Event::ServerEnded);
    })?;

    let pid_file = serve.pid_file.as_deref().map(PidFile::claim).transpose()?;
    sd_notify::notify(&[NotifyState::Ready]).context("cannot tell NOTIFY_SOCKET that the server is ready")?;
    if serve.print_uri {
        super::print(uris.as_bytes())?;
    }
    let child = match &serve.run {
        Some(command) => {
            let child = run::start(command, &environment).context("cannot start the command of --run")?;
            events.child(child)?
        }
        None => None,
    };
    Ok(Running { server, pid_file, stats_socket, encryption, child })
}

/// Inherited sockets and those asked for; the default when there are neither.
fn listeners(asked: &[Listen]) -> anyhow::Result<Vec<Listener>> {
    let mut listeners = listen::inherited()?;
    for listen in asked {
        listeners.extend(listen.bind(BACKLOG)?);
    }
    if listeners.is_empty() {
        listeners = Listen::Tcp { host: "127.0.0.1".to_owned(), port: PORT }.bind(BACKLOG)?;
    }
    Ok(listeners)
}

/// What clients call the exports.
struct Names {
    /// With whether it takes TLS to get there.
    exports: Vec<(String, bool)>,
    certificates: Option<PathBuf>,
}

impl Names {
    fn of(serve: &Serve) -> Self {
        let required = serve.tls.is_required();
        let of_one = |export: &ExportSpec| (export.name.clone(), required || export.options.tls);
        Self { exports: serve.exports.iter().map(of_one).collect(), certificates: serve.tls.directory() }
    }

    fn uri(&self, listener: &Listener, (name, needs_tls): &(String, bool)) -> String {
        match &self.certificates {
            Some(directory) if *needs_tls => listener.uri_with_tls(name, directory),
            _ => listener.uri(name),
        }
    }

    /// What a client gets that names nothing; if nobody gets that, the first.
    fn preferred(&self, listener: &Listener) -> String {
        let unnamed = self.exports.iter().find(|(name, _)| name.is_empty());
        unnamed.or_else(|| self.exports.first()).map_or_else(String::new, |export| self.uri(listener, export))
    }

    /// A line for each listener and export.
    fn all(&self, listeners: &[Listener]) -> String {
        let mut lines = String::new();
        for listener in listeners {
            for export in &self.exports {
                // A String takes whatever is written to it.
                let _ = writeln!(lines, "{}", self.uri(listener, export));
            }
        }
        lines
    }
}
