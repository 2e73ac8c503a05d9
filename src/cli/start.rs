//! From options to a server that is ready: sockets, exports, shards, then the word that it is so.

use std::fmt::Write;

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
    let listeners = listeners(&serve.listen)?;
    let stats_socket = serve.stats_socket.as_deref().map(StatsSocket::bind).transpose()?;
    for export in &mut serve.exports {
        export.options.readonly |= serve.read_only;
    }
    let export_names: Vec<_> = serve.exports.iter().map(|export| export.name.clone()).collect();
    // What a client gets that names nothing; if nobody gets that, the first.
    let preferred = export_names.iter().find(|name| name.is_empty()).or_else(|| export_names.first());
    let environment = Environment::of(&listeners, preferred.map_or("", String::as_str));
    let uris = uris(&listeners, &export_names);
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
    Ok(Running { server, pid_file, stats_socket, child })
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

/// A line for each listener and export.
fn uris(listeners: &[Listener], export_names: &[String]) -> String {
    let mut lines = String::new();
    for listener in listeners {
        for name in export_names {
            // A String takes whatever is written to it.
            let _ = writeln!(lines, "{}", listener.uri(name));
        }
    }
    lines
}
