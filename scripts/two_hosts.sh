#!/usr/bin/env bash
# Runs a command whose MPI jobs are distributed over two hosts, which a slow wire joins:
#
#     scripts/two_hosts.sh [--rate 500mbit] [--delay 200] [--mtu 9000] COMMAND [ARGUMENT...]
#
# The hosts are network namespaces of this machine, so this needs root. The wire carries `rate`,
# as tc writes it, in each direction, limited by the kernel's token bucket (tbf), and takes `delay`
# microseconds, for which scripts/wire.c holds each frame.
#
# The command itself runs outside of the hosts. Its launcher, in MPI4TCH_MPIEXEC, is MPICH's: it
# places the ranks on the two hosts by turns, and all their messages go by TCP, those of ranks on
# the same host too: no rank uses shared memory. scripts/mpiexec.sh, the tests and the benchmarks
# use that launcher.
#
# At the end, also after a failure or a signal, everything that still runs on the hosts is ended,
# and the hosts and the wire are removed. Their names contain the number of this process, and no
# other namespaces are touched.
set -euo pipefail

die() { printf '%s: %s\n' "${0##*/}" "$1" >&2 && exit 1; }

# mpiexec calls this script as it would call ssh, to start its proxy on the other host.
if [[ ${1:-} == -x && -n ${MPI4TCH_HOSTS:-} ]]; then
    declare -A hosts=([10.0.0.1]=$MPI4TCH_HOSTS-1 [10.0.0.2]=$MPI4TCH_HOSTS-2)
    # As ssh, a shell takes the words.
    exec ip netns exec "${hosts[$2]}" sh -c "${*:3}"
fi

rate=500mbit delay=200 mtu=9000
while [[ ${1:-} == --* ]]; do
    [[ $# -ge 2 ]] || die "$1 needs a value"
    case $1 in
    --rate) rate=$2 ;;
    --delay) delay=$2 ;;
    --mtu) mtu=$2 ;;
    *) die "unknown option $1; there are --rate, --delay and --mtu" ;;
    esac
    shift 2
done
[[ $# != 0 ]] || die "a command is needed: $0 [--rate RATE] [--delay MICROSECONDS] [--mtu BYTES] COMMAND"
[[ $delay =~ ^[0-9]+$ ]] || die "the delay is '$delay'; a number of microseconds is needed"
[[ $mtu =~ ^[0-9]+$ ]] || die "the MTU is '$mtu'; a number of bytes is needed"
[[ $EUID == 0 ]] || die "network namespaces need root; try: sudo -E env PATH=\"\$PATH\" $0 …"
for tool in ip tc cc; do
    command -v "$tool" >/dev/null || die "$tool is missing (on Debian: iproute2, gcc)"
done
[[ -e /dev/net/tun ]] || die "/dev/net/tun is missing: the kernel needs CONFIG_TUN"

case ${MPI4TCH_MPI:-mpich} in
*/*) mpiexec=$MPI4TCH_MPI/bin/mpiexec ;;
*) mpiexec=$(command -v "mpiexec.${MPI4TCH_MPI:-mpich}" || command -v mpiexec) ||
    die "there is no mpiexec" ;;
esac
[[ $("$mpiexec" --version 2>&1) == *HYDRA* ]] ||
    die "$mpiexec is not MPICH's: set MPI4TCH_MPI to mpich, or to the folder of an MPICH"

hosts=mpi4tch-$$
folder=$(mktemp -d)
made=()
wire=

remove() {
    # A second signal must not interrupt this.
    trap '' HUP INT TERM
    local host signal pids
    for signal in TERM KILL; do
        pids=$(for host in "${made[@]}"; do ip netns pids "$host"; done) || true
        # shellcheck disable=SC2086 # a list of numbers
        [[ -z $pids ]] || { kill -$signal $pids 2>/dev/null || true; sleep 0.5; }
    done
    [[ -z $wire ]] || kill "$wire" 2>/dev/null || true
    for host in "${made[@]}"; do ip netns del "$host" || true; done
    rm -rf "$folder"
}
trap remove EXIT

cc -O2 -o "$folder/wire" "$(dirname "$0")/wire.c"
cc -O2 -shared -fPIC -o "$folder/finalize.so" "$(dirname "$0")/finalize.c" -ldl
for host in "$hosts-1" "$hosts-2"; do
    [[ ! -e /run/netns/$host ]] || die "there is a network namespace $host already"
    ip netns add "$host"
    made+=("$host")
done
mkfifo "$folder/ready"
"$folder/wire" "${made[@]}" "$delay" "$mtu" >"$folder/ready" &
wire=$!
read -r _ <"$folder/ready" || die "the wire cannot be made"

# All with the same congestion control, not the one that this machine prefers, which may measure the
# wire now and then. The bucket holds two frames, so that a late timer costs no rate.
for i in 1 2; do
    ip netns exec "$hosts-$i" sh -c 'echo reno >/proc/sys/net/ipv4/tcp_congestion_control'
    ip -n "$hosts-$i" link set lo up
    ip -n "$hosts-$i" link set wire mtu "$mtu" up
    ip -n "$hosts-$i" address add "10.0.0.$i/24" dev wire
    tc -n "$hosts-$i" qdisc add dev wire root tbf rate "$rate" burst $((2 * (mtu + 18))) latency 50ms
done
export MPI4TCH_WIRE="two hosts, $rate by tbf, $delay µs each way by a process, packets of $mtu bytes"
echo "$MPI4TCH_WIRE" >&2

launcher=(ip netns exec "$hosts-1" "$mpiexec" -launcher ssh -launcher-exec "$(realpath "$0")"
    -hosts 10.0.0.1,10.0.0.2 -ppn 1 -iface wire
    -genv MPIR_CVAR_NOLOCAL 1 -genv UCX_TLS tcp -genv UCX_NET_DEVICES wire
    -genv LD_PRELOAD "$folder/finalize.so")
export MPI4TCH_HOSTS=$hosts MPI4TCH_MPIEXEC="${launcher[*]}"

# The command has a process group of its own, to which signals are passed on.
set -m
"$@" &
command=$!
set +m
for signal in HUP INT TERM; do
    # shellcheck disable=SC2064 # the number is known now
    trap "kill -$signal -- -$command 2>/dev/null || true" "$signal"
done
status=0
while
    wait "$command" && status=0 || status=$?
    kill -0 "$command" 2>/dev/null
do :; done
exit "$status"
