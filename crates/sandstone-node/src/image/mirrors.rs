//! Where the host gets Debian packages from, rewritten for Debian 13.

/// The suite of the image.
pub(super) const SUITE: &str = "trixie";

/// The keys that Debian signs with, as the package `debian-archive-keyring` installs them.
pub(super) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The format to ask `apt-get indextargets` for; [`package_sources`] reads what comes out.
pub(crate) const TARGET_FORMAT: &str = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ORIGIN)";

/// Debian's own names for a main suite. A host runs one of these.
const SUITES: [&str; 10] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
];

/// Settings that say how to reach a mirror; other `Acquire` settings (formats, languages, trust in
/// unsigned lists) stay the host's own business.
const ACQUIRE_PREFIXES: [&str; 9] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::ftp::",
    "Acquire::tor::",
    "Acquire::proxy",
    "Acquire::Retries",
    "Acquire::Queue-Mode",
    "Acquire::ForceIPv",
    "Acquire::Check-",
];

/// One-line source entries for the image's suite, on the mirrors that the host's apt is configured
/// with. `targets` is what `apt-get indextargets` printed in [`TARGET_FORMAT`].
///
/// `None` when the host has no Debian mirror (another distribution, for one): the builder's own
/// defaults must do.
pub(crate) fn package_sources(targets: &str) -> Option<String> {
    let targets: Vec<Target<'_>> = targets.lines().filter_map(Target::parse).collect();
    // Third parties use Debian's suite names too. The origin tells them apart, but is only known
    // once the lists have been downloaded.
    let origin_known = targets.iter().any(|target| target.origin == "Debian");
    let mirror = |security: bool| {
        targets
            .iter()
            .filter(|target| !origin_known || target.origin == "Debian")
            .find(|target| target.component == "main" && target.is_suite(security))
            .map(|target| target.uri)
    };
    let main = mirror(false)?;
    let mut list = String::new();
    let mut add = |uri: &str, suite: &str| {
        list.push_str(&format!("deb [signed-by={KEYRING}] {uri} {suite} main\n"));
    };
    add(main, SUITE);
    add(main, &format!("{SUITE}-updates"));
    // A host that follows no security updates gets an image without: its choice of mirror may be
    // a frozen one.
    if let Some(security) = mirror(true) {
        add(security, &format!("{SUITE}-security"));
    }
    Some(list)
}

struct Target<'a> {
    uri: &'a str,
    release: &'a str,
    component: &'a str,
    origin: &'a str,
}

impl<'a> Target<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split('\t').map(str::trim);
        let target = Self {
            uri: fields.next()?,
            release: fields.next()?,
            component: fields.next()?,
            origin: fields.next()?,
        };
        // The list is one entry a line and one word a field.
        let usable = !target.uri.is_empty() && !target.uri.contains([' ', '[', ']']);
        usable.then_some(target)
    }

    fn is_suite(&self, security: bool) -> bool {
        // Security updates were named `bullseye/updates` once, `bookworm-security` since.
        let name = if security {
            self.release
                .strip_suffix("-security")
                .or_else(|| self.release.strip_suffix("/updates"))
        } else {
            Some(self.release)
        };
        name.is_some_and(|name| SUITES.contains(&name))
    }
}

/// The host's settings for reaching mirrors, each as one line of apt configuration. `dump` is what
/// `apt-config dump` printed.
pub(crate) fn acquire_options(dump: &str) -> Vec<&str> {
    dump.lines()
        .map(str::trim)
        .filter(|line| {
            ACQUIRE_PREFIXES.iter().any(|prefix| {
                line.get(..prefix.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            })
        })
        .filter(|line| !line.ends_with(" \"\";"))
        .map(|line| line.trim_end_matches(';'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(targets: &str) -> Vec<String> {
        package_sources(targets)
            .unwrap_or_default()
            .lines()
            .map(|line| {
                line.strip_prefix(&format!("deb [signed-by={KEYRING}] "))
                    .expect("signed")
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn a_debian_host_is_rewritten() {
        let targets = "http://m.test/debian/\tbookworm\tmain\tDebian\n\
                       http://m.test/debian/\tbookworm-updates\tmain\tDebian\n\
                       http://s.test/sec/\tbookworm-security\tmain\tDebian\n";
        assert_eq!(
            entries(targets),
            [
                "http://m.test/debian/ trixie main",
                "http://m.test/debian/ trixie-updates main",
                "http://s.test/sec/ trixie-security main",
            ]
        );
    }

    #[test]
    fn third_parties_are_passed_over() {
        let targets = "http://vendor.test/apt/\tbookworm\tmain\tVendor\n\
                       http://vendor.test/x/\tvendor-bookworm\tmain\tVendor\n\
                       http://m.test/debian/\tbookworm\tcontrib\tDebian\n\
                       http://m.test/debian/\tbookworm\tmain\tDebian\n";
        assert_eq!(
            entries(targets),
            [
                "http://m.test/debian/ trixie main",
                "http://m.test/debian/ trixie-updates main",
            ]
        );
    }

    #[test]
    fn suite_names_do_while_no_list_has_been_downloaded() {
        let targets = "http://m.test/debian/\tstable\tmain\t\n\
                       http://m.test/debian-security/\tstable-security\tmain\t\n";
        assert_eq!(entries(targets).len(), 3);
        let old = "http://m.test/debian/\tbullseye\tmain\t\n\
                   http://s.test/\tbullseye/updates\tmain\t\n";
        assert_eq!(entries(old).len(), 3);
    }

    #[test]
    fn other_distributions_and_nonsense_give_nothing() {
        assert_eq!(package_sources(""), None);
        assert_eq!(
            package_sources("http://m.test/ubuntu/\tnoble\tmain\tUbuntu\n"),
            None
        );
        assert_eq!(package_sources("no tabs at all\n\t\t\t\n"), None);
        assert_eq!(
            package_sources("http://m.test/ [trusted=yes]\tbookworm\tmain\tDebian\n"),
            None
        );
    }

    #[test]
    fn only_settings_for_reaching_mirrors_are_taken() {
        let dump = "Acquire \"\";\n\
                    Acquire::http::Proxy \"http://p.test:3128\";\n\
                    acquire::https::CaInfo \"/etc/ca.pem\";\n\
                    Acquire::Check-Valid-Until \"false\";\n\
                    Acquire::http \"\";\n\
                    Acquire::http::Proxy::x.test \"\";\n\
                    Acquire::AllowInsecureRepositories \"1\";\n\
                    Acquire::Languages:: \"none\";\n\
                    APT::Sandbox::User \"root\";\n";
        assert_eq!(
            acquire_options(dump),
            [
                "Acquire::http::Proxy \"http://p.test:3128\"",
                "acquire::https::CaInfo \"/etc/ca.pem\"",
                "Acquire::Check-Valid-Until \"false\"",
            ]
        );
    }
}
