# Shared by the sandbox scripts: directories, the servers' user, locks, ports, missing packages. Sourced by up, down,
# status, with, kafka, postgres, setup and demo. Sourcing this file starts and stops nothing.
# shellcheck shell=bash

set -euo pipefail
umask 022 # as root, the servers run as another user, who must be able to read the files that are written here

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
repo=$(cd "$here/../.." && pwd -P)
SANDBOX_DIR=$(realpath -m -- "${SANDBOX_DIR:-$repo/.sandbox}")
SANDBOX_LIB=$(realpath -m -- "${SANDBOX_LIB:-$repo/.sandbox/lib}")
data=$SANDBOX_DIR/data # both servers' files; a link if the servers' user can't reach SANDBOX_DIR
export SANDBOX_DIR SANDBOX_LIB

say() { printf 'sandbox: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

# ---- locks: `locked FILE FD [-s]` waits for the lock (-s: shared) and holds it until FD is closed ----

locked() {
    mkdir -p -- "$(dirname -- "$1")" || die "can't write to $(dirname -- "$1"): set SANDBOX_DIR (and SANDBOX_LIB) to a directory of yours"
    eval "exec $2>>\"\$1\"" || die "$1 belongs to another user: set SANDBOX_DIR (and SANDBOX_LIB) to a directory of yours"
    flock ${3+"$3"} "$2"
}

# ---- who runs the servers: never root ----

server_user=$(id -un)
as_server=() # as a prefix it runs a command as the servers' user
if [[ $EUID -eq 0 ]]; then
    server_user=nobody
    ! id postgres >/dev/null 2>&1 || server_user=postgres
    as_server=(setpriv --reuid="$server_user" --regid="$(id -g "$server_user")" --init-groups env HOME=/)
fi

# Makes `data`, owned by the servers' user. If that user can't reach the directory (a clone in /root), the files are in
# /var/tmp, and `data` is a link to them.
make_data() {
    locked "$SANDBOX_DIR/data.lock" 7
    if [[ ! -d $data ]]; then
        rm -f -- "$data" # a link whose target was deleted
        mkdir -p -- "$data"
        if [[ $EUID -eq 0 ]]; then
            chown "$server_user:" -- "$data"
            if ! "${as_server[@]}" test -x "$data"; then
                rmdir -- "$data"
                local away
                away=$(mktemp -d /var/tmp/gapless-sandbox.XXXXXX)
                chown "$server_user:" -- "$away"
                ln -s -- "$away" "$data"
                say "user $server_user can't reach $SANDBOX_DIR; the servers' files are in $away"
            fi
        fi
    fi
    exec 7>&-
    data=$(realpath -- "$data")
}

# Removes the servers' files. The servers must be stopped.
delete_data() {
    local target
    target=$(realpath -m -- "$data")
    rm -rf -- "$data" "$SANDBOX_DIR/temporary"
    if [[ $target == /var/tmp/gapless-sandbox.* ]]; then rm -rf -- "$target"; fi
}

# is_ours PID WORD: succeeds if PID is alive and WORD is one of its arguments. Every kill checks it first, because a pid
# file may be out of date.
is_ours() {
    [[ $1 =~ ^[0-9]+$ ]] && grep -qxzF -- "$2" "/proc/$1/cmdline" 2>/dev/null
}

# gone PID SECONDS: waits until PID has ended, SECONDS at most.
gone() {
    local left=$(($2 * 10))
    while [[ -d /proc/$1 && $(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null) != Z ]]; do
        ((left-- > 0)) || return 1
        sleep 0.1
    done
}

# ---- ports on loopback, below the range that the kernel gives to outgoing connections ----

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() {
    local port
    for _ in {1..50}; do
        port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
        answers "$port" || {
            echo "$port"
            return
        }
    done
    die "found no free port on 127.0.0.1"
}

# ---- missing packages: `need PACKAGE… -- COMMAND…` notes the packages if COMMAND fails ----

missing=()
need() {
    local packages=()
    while [[ $1 != -- ]]; do
        packages+=("$1")
        shift
    done
    shift
    "$@" >/dev/null 2>&1 || missing+=("${packages[@]}")
}

# Installs the packages that `need` noted, or prints the command that does.
install_missing() {
    ((${#missing[@]})) || return 0
    local command="apt-get install -y --no-install-recommends ${missing[*]}"
    command -v apt-get >/dev/null || die "missing: ${missing[*]} (names of Debian packages; there is no apt-get here)"
    [[ $EUID -eq 0 ]] || die "missing: ${missing[*]}. As root: apt-get update && $command"
    locked "$SANDBOX_LIB/apt.lock" 5
    say "$command"
    (
        # Debian's package would create a cluster and start it; the sandbox needs the programs only.
        no_cluster=/etc/postgresql-common/createcluster.d/gapless-sandbox.conf
        if [[ " ${missing[*]} " == *" postgresql "* && ! -e $no_cluster ]]; then
            trap 'rm -f -- "$no_cluster"' EXIT
            mkdir -p -- "$(dirname -- "$no_cluster")"
            echo 'create_main_cluster = false' >"$no_cluster"
        fi
        export DEBIAN_FRONTEND=noninteractive
        options=(-o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -qq)
        apt-get "${options[@]}" update
        apt-get "${options[@]}" install -y --no-install-recommends "${missing[@]}"
    ) >&2 || die "could not install: ${missing[*]}"
    exec 5>&-
    missing=()
}

java_17() {
    local version
    version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p')
    [[ ${version:-0} -ge 17 ]]
}

# The directory of the newest usable PostgreSQL (15 or newer, with its server), or nothing.
postgres_bin() {
    local dir major best=0 found=
    for dir in "$(pg_config --bindir 2>/dev/null)" /usr/lib/postgresql/*/bin "$(dirname -- "$(command -v postgres || echo /nowhere/postgres)")"; do
        [[ -x $dir/postgres && -x $dir/initdb && -x $dir/pg_ctl ]] || continue
        major=$("$dir/postgres" --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
        if ((major >= 15 && major > best)); then best=$major found=$dir; fi
    done
    [[ $found ]] && echo "$found"
}

# ---- both servers at once ----

start_servers() { each_server start "$@"; }
stop_servers() { each_server stop "$@"; }
each_server() { # each_server VERB SERVER…: side by side; fails if one fails
    local verb=$1 server pids=() failed=
    shift
    for server in "$@"; do
        "$here/$server" "$verb" &
        pids+=("$!")
    done
    for server in "${pids[@]}"; do wait "$server" || failed=yes; done
    [[ ! $failed ]]
}
