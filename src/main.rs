//! Parses the command line, runs the verb or the daemon, and ends with its exit code.

use std::io::Write;

use clap::Parser;
use gapless::cli::{Cli, ConflictsVerb, DeadLetterFlags, DeadLettersVerb, StartFlags, Verb};
use gapless::commands::verify::Depth;
use gapless::config::Config;
use gapless::daemon::{self, Run};
use gapless::exit::{self, Exit, Failure};
use gapless::ledger::read::dead_letters::Selector;
use gapless::model::generation::NewGeneration;
use gapless::model::start_order::{Again, SkipAllowed, StartOrder};
use gapless::observe::telemetry;
use gapless::{commands, kafka, postgres, shutdown};

/// One thread allocates a message and another one frees it. Beyond the small cache of a thread, glibc takes a lock each
/// time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    shutdown::abort_on_panic();
    let cli = Cli::parse();
    let result = run(cli);
    if let Err(failure) = &result {
        // `eprintln!` would panic if standard error is closed. The exit code reports the failure too.
        let _ = writeln!(std::io::stderr(), "gapless: {}", failure.message);
    }
    let _ = std::io::stdout().flush();
    // The threads of Kafka clients may still run, in the middle of a handshake for example.
    kafka::ffi::end_process(exit::code(&result))
}

fn run(cli: Cli) -> Result<Exit, Failure> {
    if cli.verb.is_some() && cli.start.is_given() {
        return Err(Failure::usage("start flags belong to the daemon or behind the verb `plan`"));
    }
    let needs = cli.needs();
    let config = Config::load(cli.common.config.as_deref(), &cli.overrides(), needs).map_err(Failure::usage)?;
    telemetry::start(config.log.format, &config.log.level).map_err(Failure::usage)?;
    // One worker thread is enough, and a small batch then wakes no other thread at each step.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::failed(format!(
            "cannot start a thread: {error}; raise the limit of processes (ulimit -u, systemd's TasksMax)"
        ))
    })?;
    let is_verb = cli.verb.is_some();
    // In a box, because the future is as large as that of the largest verb.
    let work = Box::pin(async {
        match cli.verb {
            // As a task it runs on the worker thread that polls the sockets. Otherwise each answer would wake this
            // thread.
            None => tokio::spawn(daemon::run(config, daemon(&cli.start)?))
                .await
                .map_err(|error| Failure::failed(format!("the daemon's task ended early ({error}); this is a bug")))?,
            Some(Verb::Status { format }) => commands::status::run(&config, format).await,
            Some(Verb::Plan { start, format }) => commands::plan::run(&config, &daemon(&start)?, format).await,
            Some(Verb::Verify { deep, format }) => {
                let depth = if deep { Depth::Deep } else { Depth::Sample };
                commands::verify::run(&config, depth, format).await
            }
            Some(Verb::Replay { offsets: Some(offsets), reason, .. }) => {
                let offsets = offsets.parse().map_err(Failure::usage)?;
                commands::replay::offsets(&config, &offsets, reason.as_deref()).await
            }
            Some(Verb::Replay { offsets: None, dead_letters, all, reason }) => {
                if !all && !dead_letters.is_given() {
                    return Err(Failure::usage(
                        "say what to replay: --offsets, --rejected-for, --id, --since, --until or --all",
                    ));
                }
                commands::replay::dead_letters(&config, &selector(&config, &dead_letters), reason.as_deref()).await
            }
            Some(Verb::AcceptLoss { partition, from, to, reason, .. }) => {
                commands::decide::accept_loss(&config, partition, from, to, &reason).await
            }
            Some(Verb::Rebase { log_replaced, cluster_changed, accept_unread, reason, .. }) => {
                let kind = match (log_replaced, cluster_changed) {
                    (true, _) => NewGeneration::LogReplaced,
                    (false, true) => NewGeneration::ClusterChanged,
                    (false, false) => NewGeneration::Recreated,
                };
                commands::decide::rebase(&config, kind, &accept_unread, &reason).await
            }
            Some(Verb::Receipt { partition: Some(partition), offset: Some(offset), format, .. }) => {
                commands::receipt::of_message(&config, partition, offset, format).await
            }
            Some(Verb::Receipt { subject: txn, format, .. }) => {
                commands::receipt::of_transaction(&config, &txn, format).await
            }
            Some(Verb::Conflicts { verb: ConflictsVerb::List { format } }) => {
                commands::receipt::conflicts(&config, format).await
            }
            Some(Verb::DeadLetters { verb }) => dead_letters(&config, verb).await,
            Some(Verb::Migrate) => commands::migrate::run(&config).await,
            Some(Verb::Check { format }) => commands::check::run(&config, format).await,
        }
    });
    // The daemon handles signals itself.
    let result = runtime.block_on(async { if is_verb { Box::pin(interruptible(work)).await } else { work.await } });
    // A request to a server that hangs must not delay the end of the process.
    runtime.shutdown_background();
    result
}

/// Runs a verb until a signal interrupts it. Its open queries are then cancelled in PostgreSQL.
async fn interruptible(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    match shutdown::unless_interrupted(work).await.map_err(Failure::failed)? {
        Ok(result) => result,
        Err(interruption) => {
            postgres::cancel::cancelled().await;
            Err(Failure::interrupted(interruption.name, interruption.number))
        }
    }
}

async fn dead_letters(config: &Config, verb: DeadLettersVerb) -> Result<Exit, Failure> {
    use commands::dead_letters::{discard, list, show};
    match verb {
        DeadLettersVerb::List { dead_letters, format } => list(config, &selector(config, &dead_letters), format).await,
        DeadLettersVerb::Show { id } => {
            let topic = config.kafka.topic.to_string();
            show(config, &Selector { topic, at: Some(id), ..Selector::default() }).await
        }
        DeadLettersVerb::Discard { rejected_for: None, id: None, .. } => {
            Err(Failure::usage("say which dead letters: --rejected-for or --id"))
        }
        DeadLettersVerb::Discard { rejected_for, id, reason } => {
            let dead_letters = DeadLetterFlags { rejected_for, id, since: None, until: None };
            discard(config, &selector(config, &dead_letters), &reason).await
        }
    }
}

fn selector(config: &Config, flags: &DeadLetterFlags) -> Selector {
    let topic = config.kafka.topic.to_string();
    Selector { topic, reason: flags.rejected_for.clone(), at: flags.id, since: flags.since, until: flags.until }
}

fn daemon(flags: &StartFlags) -> Result<Run, Failure> {
    Ok(Run {
        order: match &flags.offset {
            Some(text) => StartOrder::parse(text).map_err(Failure::usage)?,
            None => StartOrder::FromDb,
        },
        skip_allowed: if flags.allow_skip { SkipAllowed::Yes } else { SkipAllowed::No },
        again: if flags.again { Again::Yes } else { Again::No },
        until_end: flags.until_end,
    })
}
