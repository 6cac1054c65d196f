//! `sandstone serve`: puts the server together and runs it until it is told to stop.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use sandstone_api::{ByteSize, Region};
use sandstone_core::{Clock, Entropy, SANDBOXES_MAX, SandboxBounds, StopReason};
use sandstone_crash::Plan;
use sandstone_node::{
    AptSettings, GuestTrust, HostSettings, Node, NodeConfig, SandboxLimits, Shim,
    public_name_servers,
};
use sandstone_node_api::{NodeApi, Readiness};
use sandstone_server::control::{self, ControlConfig, ControlPlane};
use sandstone_server::edge::{self, EdgeConfig};
use sandstone_server::ingress::CertificateReload;
use sandstone_store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::ambient::{SystemClock, SystemEntropy};
use crate::data_dir::DataDir;
use crate::duration::Humane;
use crate::expose::{ExposeArguments, Exposing};
use crate::image::DEFAULT_IMAGE_CACHE;
use crate::open_files;
use crate::ssh::{self, SshArguments};

/// What is logged by default. russh repeats what strangers send it.
const DEFAULT_LOG: &str = "info,sqlx=warn,russh=off";

/// Name of the one organisation that a fresh server has.
const ORGANISATION: &str = "default";

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  sandstone serve
  sandstone serve --data-dir /srv/sandstone --listen 127.0.0.1:9000 --pool-size 100GiB

Then, for the official SDKs:
  export DENO_DEPLOY_TOKEN=$(cat /var/lib/sandstone/admin-token)
  export DENO_DEPLOY_ENDPOINT=http://127.0.0.1:8080
  export DENO_SANDBOX_ENDPOINT=http://127.0.0.1:8080")]
pub(crate) struct ServeArguments {
    /// Where volumes, the database and the token are kept. One server at a time.
    #[arg(long, env = "SANDSTONE_DATA_DIR", default_value = "/var/lib/sandstone")]
    data_dir: PathBuf,
    /// Address to listen on. Port 0 takes any free one and writes it to DATA_DIR/listen-address.
    #[arg(long, env = "SANDSTONE_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Regions that this server serves; the first is the default.
    #[arg(
        long,
        env = "SANDSTONE_REGIONS",
        value_delimiter = ',',
        default_value = "ord,ams"
    )]
    regions: Vec<Region>,
    /// Size of the pool's file, where the data directory's file system has no reflinks. Reserved
    /// in full at the first start.
    #[arg(long, env = "SANDSTONE_POOL_SIZE", default_value = "20GiB")]
    pool_size: ByteSize,
    /// Where built base images are kept, shared by all servers of this host.
    #[arg(long, env = "SANDSTONE_IMAGE_CACHE", default_value = DEFAULT_IMAGE_CACHE)]
    image_cache: PathBuf,
    /// Gives sandboxes the host's name servers, certificate authorities and package-client
    /// settings, and the way to them.
    #[arg(long, env = "SANDSTONE_GUEST_TRUST", value_enum, default_value_t = GuestTrustChoice::None)]
    guest_trust: GuestTrustChoice,
    /// Name servers of sandboxes that are not given the host's.
    #[arg(long, env = "SANDSTONE_DNS", value_delimiter = ',')]
    dns: Vec<IpAddr>,
    /// Sandboxes kept ready in advance.
    #[arg(long, env = "SANDSTONE_WARM", default_value_t = 3)]
    warm: usize,
    /// Bytes that one sandbox can write outside its volumes.
    #[arg(long, env = "SANDSTONE_SCRATCH_SIZE", default_value = "10GiB")]
    scratch_size: ByteSize,
    /// Processors that one sandbox can use, in thousandths.
    #[arg(long, env = "SANDSTONE_CPU_MILLIS", default_value_t = 2000)]
    cpu_millis: u32,
    /// Processes and threads that one sandbox can have.
    #[arg(long, env = "SANDSTONE_PIDS_MAX", default_value_t = 4096)]
    pids_max: u32,
    /// Files that one process in a sandbox can have open, as far as the server's hard limit goes.
    #[arg(long, env = "SANDSTONE_OPEN_FILES", default_value_t = 65_536)]
    open_files: u32,
    /// Least memory of a sandbox.
    #[arg(long, env = "SANDSTONE_MEMORY_MIN", default_value = "768MiB")]
    memory_min: ByteSize,
    /// Most memory of a sandbox.
    #[arg(long, env = "SANDSTONE_MEMORY_MAX", default_value = "4096MiB")]
    memory_max: ByteSize,
    /// Longest life that a sandbox can be given at once. It can be extended while it runs.
    #[arg(long, env = "SANDSTONE_LIFETIME_MAX", default_value = "30m")]
    lifetime_max: Humane,
    /// Sandboxes that an organisation can have at once.
    #[arg(long, env = "SANDSTONE_SANDBOXES_MAX", default_value_t = SANDBOXES_MAX)]
    sandboxes_max: u32,
    /// The /16 network that sandboxes have their addresses in.
    #[arg(long, env = "SANDSTONE_NETWORK", default_value = "10.209.0.0")]
    network: Ipv4Addr,
    /// How long a deleted volume or snapshot can be restored.
    #[arg(long, env = "SANDSTONE_DELETION_GRACE", default_value = "24h")]
    deletion_grace: Humane,
    /// How often the sizes of volumes that are in use are measured.
    #[arg(long, env = "SANDSTONE_MEASURE_EVERY", default_value = "30s")]
    measure_every: Humane,
    /// How often every snapshot is read and compared with its checksum.
    #[arg(long, env = "SANDSTONE_VERIFY_EVERY", default_value = "7d")]
    verify_every: Humane,
    /// Command line of an editor that sandboxes have, for `exposeVscode`. It must serve HTTP on
    /// 127.0.0.1:{port} and show the directory {path}.
    #[arg(long, env = "SANDSTONE_EDITOR", value_name = "COMMAND")]
    editor: Option<String>,
    /// How long a client may take nothing of what a sandbox sends before it is disconnected, that of
    /// an exposed server included.
    #[arg(long, default_value = "60s", hide = true)]
    stall_limit: Humane,
    /// How often what was deleted long enough ago is removed.
    #[arg(long, default_value = "60s", hide = true)]
    purge_every: Humane,
    /// How often snapshots to record, to pack or to verify are looked for.
    #[arg(long, default_value = "60s", hide = true)]
    checks_every: Humane,
    #[command(flatten)]
    ssh: SshArguments,
    #[command(flatten)]
    expose: ExposeArguments,
    /// Kills the server at a place between two steps: PLACE, or PLACE:N for the N-th time.
    #[arg(long, value_name = "PLAN", hide = true)]
    crash_at: Option<Plan>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum GuestTrustChoice {
    /// Public name servers, nothing of the host.
    None,
    /// The host's.
    Host,
}

/// Runs the server until SIGTERM or SIGINT.
pub(crate) fn run(arguments: ServeArguments) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_from_env("SANDSTONE_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    if !rustix::process::geteuid().is_root() {
        bail!("sandstone serve must run as root: it mounts file systems and makes namespaces");
    }
    // Before egress takes its share of them.
    open_files::raise_limit();
    // A sandbox's first process becomes ours when its shim ends, so that we can reap it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("cannot become the reaper of sandboxes")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let outcome = runtime.block_on(serve(arguments));
    // A base image may still be under way on a thread of its own: it need not be waited for.
    runtime.shutdown_background();
    outcome
}

async fn serve(arguments: ServeArguments) -> anyhow::Result<()> {
    // From the first moment: what it does by default is to end the process.
    let hangups = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    if let Some(plan) = arguments.crash_at {
        sandstone_crash::arm(plan);
    }
    let mut config = control_config(&arguments)?;
    let data = DataDir::open(&arguments.data_dir, &*entropy)?;
    let guest = guest_trust(&arguments)?;
    let node = node_config(&arguments, &data, guest)?;

    let store = Store::open(&data.path().join("sandstone.db"))
        .await
        .context("cannot open the database")?;
    let token = data.admin_token(&*entropy)?;
    let organisation = ORGANISATION.parse().context("the organisation's name")?;
    control::admit(&store, &*clock, &*entropy, &organisation, &token)
        .await
        .context("cannot admit the organisation's token")?;

    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    let address = listener.local_addr()?;
    let ssh = ssh::listen(&arguments.ssh, &data, &*entropy).await?;
    let exposing = arguments
        .expose
        .open(&data, clock.clone(), arguments.stall_limit.duration())
        .await?;
    let reload = exposing.as_ref().map(|exposing| exposing.ingress.reload());
    let reloading = tokio::spawn(reload_on(hangups, reload));
    config.exposed_at = exposing.as_ref().map(|exposing| exposing.at.clone());
    let node = Node::start(node, clock.clone(), entropy.clone());
    let control = ControlPlane::new(
        store.clone(),
        node.clone() as Arc<dyn NodeApi>,
        clock.clone(),
        entropy.clone(),
        config,
    );

    let stop = CancellationToken::new();
    let mut reconcilers = tokio::spawn({
        let (node, control, stop) = (node.clone(), control.clone(), stop.clone());
        async move {
            let readiness = tokio::select! {
                readiness = node.prepared() => readiness,
                () = stop.cancelled() => return Ok(()),
            };
            match readiness {
                Readiness::Ready => {
                    control
                        .recover()
                        .await
                        .context("cannot take up the work of the last server")?;
                    Box::pin(control.run(stop)).await;
                }
                Readiness::NotReady(reason) => {
                    tracing::error!(%reason, "sandboxes cannot be created on this host");
                    stop.cancelled().await;
                }
            }
            anyhow::Ok(())
        }
    });
    let config = EdgeConfig {
        clock,
        entropy,
        stall_limit: arguments.stall_limit.duration(),
        editor: arguments.editor,
        ssh: ssh.as_ref().map(|ssh| ssh.endpoint.clone()),
    };
    let router = edge::router(control.clone(), config);
    let ssh = ssh.map(|ssh| {
        let serving =
            sandstone_server::ssh::serve(ssh.listener, control.clone(), ssh.key, stop.clone());
        tokio::spawn(serving)
    });
    let ingress = tokio::spawn({
        let (control, stop) = (control.clone(), stop.clone());
        async move {
            match exposing {
                Some(Exposing {
                    ingress, listener, ..
                }) => ingress.serve(listener, control, stop).await,
                None => Ok(()),
            }
        }
    });
    let edge = tokio::spawn(edge::serve(listener, router, stop.clone()));
    data.write_listen_address(&address.to_string())?;
    tracing::info!(%address, "listening");

    tokio::select! {
        signal = wait_for_signal() => signal?,
        // It ends before it is told to only when it cannot go on. What the last server left is as
        // it was then, so nothing is stopped or unmounted: the next start finds it again.
        ended = &mut reconcilers => return ended?,
    }
    tracing::info!("stopping: ending sandboxes and flushing volumes");
    control.stop_all(StopReason::ServerStopped).await;
    stop.cancel();
    edge.await?;
    if let Some(ssh) = ssh {
        ssh.await?;
    }
    ingress.await?.context("exposing servers failed")?;
    reloading.abort();
    reconcilers.await??;
    node.shut_down()
        .await
        .context("cannot release the host's resources")?;
    store.close().await;
    tracing::info!("stopped");
    Ok(())
}

fn control_config(arguments: &ServeArguments) -> anyhow::Result<ControlConfig> {
    let Some((default_region, other_regions)) = arguments.regions.split_first() else {
        bail!("--regions needs at least one region");
    };
    let limits = [
        ("--cpu-millis", arguments.cpu_millis),
        ("--pids-max", arguments.pids_max),
        ("--open-files", arguments.open_files),
        ("--sandboxes-max", arguments.sandboxes_max),
    ];
    if let Some((name, _)) = limits.iter().find(|(_, limit)| *limit == 0) {
        bail!("{name} must be more than 0");
    }
    let timers = [
        ("--lifetime-max", arguments.lifetime_max),
        ("--stall-limit", arguments.stall_limit),
        ("--measure-every", arguments.measure_every),
        ("--verify-every", arguments.verify_every),
        ("--purge-every", arguments.purge_every),
        ("--checks-every", arguments.checks_every),
    ];
    if let Some((name, _)) = timers.iter().find(|(_, every)| every.duration().is_zero()) {
        bail!("{name} must be longer than nothing");
    }
    let mut config = ControlConfig::new(*default_region, other_regions);
    config.bounds = SandboxBounds::default()
        .with_memory(arguments.memory_min, arguments.memory_max)
        .context("--memory-min is more than --memory-max")?;
    config.bounds.lifetime_max_ms = arguments.lifetime_max.millis();
    config.bounds.sandboxes_max = arguments.sandboxes_max;
    config.deletion_grace_ms = arguments.deletion_grace.millis();
    config.measure_every = arguments.measure_every.duration();
    config.verify_every = arguments.verify_every.duration();
    config.purge_every = arguments.purge_every.duration();
    config.checks_every = arguments.checks_every.duration();
    Ok(config)
}

fn guest_trust(arguments: &ServeArguments) -> anyhow::Result<GuestTrust> {
    match arguments.guest_trust {
        GuestTrustChoice::None if arguments.dns.is_empty() => {
            Ok(GuestTrust::none(&public_name_servers()))
        }
        GuestTrustChoice::None => Ok(GuestTrust::none(&arguments.dns)),
        GuestTrustChoice::Host => {
            let environment: BTreeMap<String, String> = std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect();
            let home = environment
                .get("HOME")
                .map_or_else(|| PathBuf::from("/root"), PathBuf::from);
            GuestTrust::of_host(&HostSettings {
                environment,
                home,
                root: PathBuf::from("/"),
                apt: AptSettings::of_host(),
            })
            .context("cannot take over the host's settings for sandboxes")
        }
    }
}

fn node_config(
    arguments: &ServeArguments,
    data: &DataDir,
    guest: GuestTrust,
) -> anyhow::Result<NodeConfig> {
    // The running binary itself: an upgrade on disk must not change the shim under us.
    let shim = Shim {
        program: "/proc/self/exe".into(),
        args: vec!["shim".to_owned()],
    };
    Ok(NodeConfig {
        data_dir: data.path().to_owned(),
        run_dir: PathBuf::from("/run/sandstone"),
        image_cache: arguments.image_cache.clone(),
        instance: data.instance().to_owned(),
        pool_bytes: arguments.pool_size.bytes(),
        limits: SandboxLimits {
            scratch_bytes: arguments.scratch_size.bytes(),
            cpu_millis: arguments.cpu_millis,
            pids: arguments.pids_max,
            open_files: arguments.open_files,
        },
        warm: arguments.warm,
        guest,
        shim,
        network: arguments.network,
    })
}

/// Reads the certificate of exposed servers again at each SIGHUP, as operators do who renew it.
/// Without this the signal would end the server.
async fn reload_on(mut hangups: Signal, reload: Option<CertificateReload>) {
    while hangups.recv().await.is_some() {
        let Some(reload) = reload.clone() else {
            tracing::info!("SIGHUP: there is nothing to read again");
            continue;
        };
        tracing::info!("SIGHUP: reading the certificate of exposed servers again");
        if let Err(error) = tokio::task::spawn_blocking(move || reload.now()).await {
            tracing::error!(%error, "reading the certificate failed");
        }
    }
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
