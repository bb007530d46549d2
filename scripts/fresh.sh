#!/usr/bin/env bash
# A fresh Debian, and in it what README says: make demo and make test, as an ordinary user, without gcc and then with it.
#
#   scripts/fresh.sh bookworm                      every test, twice
#   scripts/fresh.sh trixie PYTEST_ARGS=tests/linker   whatever follows the suite is for `make test`
#
# As root, with mmdebstrap. Packages come from where this machine's own apt and pip have theirs; the real kernels
# that `make guests` fetched are lent to it. Everything is in a temporary folder, which goes away at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

suite=${1:?usage: scripts/fresh.sh SUITE [MAKE ARGUMENTS]}
shift
[ "$(id -u)" = 0 ] || { echo "scripts/fresh.sh: a chroot takes root" >&2; exit 2; }
command -v mmdebstrap >/dev/null || { echo "scripts/fresh.sh: apt install mmdebstrap" >&2; exit 2; }

root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
user=1000
home=/home/user
tree=$home/domainbuilder

step() { printf '\n-- %s: %s (%ss)\n' "$suite" "$1" "$SECONDS"; }

# This machine's Debian archive, and how its apt is told to fetch.
mirror=$(apt-get indextargets --format '$(CREATED_BY)|$(COMPONENT)|$(REPO_URI)' |
    sed -n 's,^Packages|main|\(.*/debian\)/*$,\1,p' | head -n 1)
[ -n "$mirror" ] || { echo "scripts/fresh.sh: none of apt's sources here is a Debian archive" >&2; exit 2; }
apt-config dump --no-empty Acquire | grep -E '^Acquire::(Check|Retries|https?::)' >"$root.conf" || true

step "bootstrap, with the python3 and make that README asks for"
chmod 755 "$root"
mmdebstrap --quiet --variant=minbase --include=ca-certificates,make,python3 --aptopt="$root.conf" \
    "$suite" "$root" "deb $mirror $suite main"
rm -f "$root.conf"

# pip's configuration, the folders of packages that it names, certificates, and names on the network.
borrow() { [ ! -e "$1" ] || { mkdir -p "$(dirname "$root$2")" && cp -L "$1" "$root$2"; }; }
borrow /etc/resolv.conf /etc/resolv.conf
borrow /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
borrow /etc/pip.conf /etc/pip.conf
borrow "$HOME/.config/pip/pip.conf" $home/.config/pip/pip.conf
lent=()
while read -r folder; do
    [ ! -d "$folder" ] || lent+=("$folder" "$root$folder")
done < <(cat /etc/pip.conf "$HOME/.config/pip/pip.conf" 2>/dev/null | grep -oE '/(opt|srv|mnt)/[^/ ]+' | sort -u)
mkdir -p "$root$tree/.cache/guests"
[ ! -d .cache/guests ] || lent+=("$PWD/.cache/guests" "$root$tree/.cache/guests")

git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$root$tree"
echo "user:x:$user:$user::$home:/bin/bash" >>"$root/etc/passwd"
echo "user:x:$user:" >>"$root/etc/group"
chown -R $user:$user "$root$home"

# inside USER COMMAND...: in the chroot, with /proc, /dev and pseudo-terminals of its own.
inside() {
    local -a keep=()
    local name
    for name in $(compgen -e); do
        case $name in PIP_*|*_proxy|*_PROXY|SSL_*|TERM) keep+=("$name=${!name}") ;; esac
    done
    env -i "${keep[@]}" HOME=$home PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        unshare --mount --pid --fork --kill-child bash -c '
            root=$1 user=$2 tree=$3 lent=$4
            shift 4
            mount --rbind /dev "$root/dev"
            mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
            mount -t proc proc "$root/proc"
            for ((; lent > 0; lent--)); do
                mkdir -p "$2" && mount --bind "$1" "$2"
                shift 2
            done
            exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups \
                bash -c "cd $tree && exec \"\$@\"" - "$@"
        ' - "$root" "$1" "$tree" $((${#lent[@]} / 2)) "${lent[@]}" "${@:2}"
}
install() { inside 0 apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@" >/dev/null; }

step "make demo, without python3-venv: it says what to install, and leaves nothing behind"
if inside $user make demo 2>"$root/told"; then
    echo "scripts/fresh.sh: make demo worked without venv" >&2
    exit 1
fi
grep 'apt install python3-venv' "$root/told"
[ ! -e "$root$tree/.venv" ]

step "make demo"
inside 0 apt-get -qq update
install python3-venv
mkdir "$root$tree/.venv" && chown $user "$root$tree/.venv" # what an interrupted try may leave
inside $user make demo </dev/null

step "make test, without gcc, ld, readelf"
inside $user make test "$@" </dev/null

step "make test, with gcc"
install gcc libc6-dev
inside $user make test "$@" </dev/null

step "all is well"
