//! `sandstone serve`: puts the server together and runs it until it is told to stop.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use sandstone_api::{ByteSize, Region};
use sandstone_core::{Clock, Entropy, StopReason};
use sandstone_node::{
    AptSettings, GuestTrust, HostSettings, Node, NodeConfig, SandboxLimits, Shim,
    public_name_servers,
};
use sandstone_node_api::{NodeApi, Readiness};
use sandstone_server::control::{self, ControlConfig, ControlPlane};
use sandstone_server::edge::{self, EdgeConfig};
use sandstone_store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::ambient::{SystemClock, SystemEntropy};
use crate::data_dir::DataDir;
use crate::image::DEFAULT_IMAGE_CACHE;

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
    /// The /16 network that sandboxes have their addresses in.
    #[arg(long, env = "SANDSTONE_NETWORK", default_value = "10.209.0.0")]
    network: Ipv4Addr,
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
    let filter = EnvFilter::try_from_env("SANDSTONE_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    if !rustix::process::geteuid().is_root() {
        bail!("sandstone serve must run as root: it mounts file systems and makes namespaces");
    }
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
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
    let Some((default_region, other_regions)) = arguments.regions.split_first() else {
        bail!("--regions needs at least one region");
    };
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
    let node = Node::start(node, entropy.clone());
    let control = ControlPlane::new(
        store.clone(),
        node.clone() as Arc<dyn NodeApi>,
        clock.clone(),
        entropy.clone(),
        ControlConfig::new(*default_region, other_regions),
    );

    let stop = CancellationToken::new();
    let reconcilers = tokio::spawn({
        let (node, control, stop) = (node.clone(), control.clone(), stop.clone());
        async move {
            let readiness = tokio::select! {
                readiness = node.prepared() => readiness,
                () = stop.cancelled() => return,
            };
            match readiness {
                Readiness::Ready => {
                    if let Err(error) = control.recover().await {
                        tracing::error!(%error, "cannot take up the work of the last server");
                        return;
                    }
                    control.run(stop).await;
                }
                Readiness::NotReady(reason) => {
                    tracing::error!(%reason, "sandboxes cannot be created on this host");
                }
            }
        }
    });
    let router = edge::router(control.clone(), EdgeConfig { clock, entropy });
    let edge = tokio::spawn(edge::serve(listener, router, stop.clone()));
    data.write_listen_address(&address.to_string())?;
    tracing::info!(%address, "listening");

    wait_for_signal().await?;
    tracing::info!("stopping: ending sandboxes and flushing volumes");
    control.stop_all(StopReason::ServerStopped).await;
    stop.cancel();
    edge.await?.context("the listener failed")?;
    reconcilers.await?;
    node.shut_down()
        .await
        .context("cannot release the host's resources")?;
    store.close().await;
    tracing::info!("stopped");
    Ok(())
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
        },
        warm: arguments.warm,
        guest,
        shim,
        network: arguments.network,
    })
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
