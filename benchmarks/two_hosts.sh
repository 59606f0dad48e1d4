#!/usr/bin/env bash
# Run onecycle-demo on two hosts, simulated on one machine: two separate network namespaces, joined by one cable (a veth pair).
# `bash benchmarks/two_hosts.sh` (as root) starts torchrun once on each. Arguments for the demo can follow, such as --cycle_len 3
set -euo pipefail
cd "$(dirname "$0")/.."
hosts=("cycle0-$$" "cycle1-$$")
addresses=(10.97.0.1 10.97.0.2)
work=$(mktemp -d)
clean() {
    local running; running=$(jobs -p)
    if [ -n "$running" ]; then kill $running 2>/dev/null || true; wait || true; fi
    for host in "${hosts[@]}"; do ip netns del "$host" 2>/dev/null || true; done
    rm -rf "$work"
}
trap clean EXIT
for host in "${hosts[@]}"; do ip netns add "$host"; done
ip link add cable0 netns "${hosts[0]}" type veth peer name cable1 netns "${hosts[1]}"
for i in 0 1; do
    ip -n "${hosts[$i]}" address add "${addresses[$i]}/24" dev "cable$i"
    ip -n "${hosts[$i]}" link set "cable$i" up
    ip -n "${hosts[$i]}" link set lo up
done

start() {   # torchrun of host $1, with the program's arguments after it
    local i=$1; shift
    mkdir "$work/$i"
    ip netns exec "${hosts[$i]}" env -C "$work/$i" ACCELERATE_USE_CPU=true GLOO_SOCKET_IFNAME="cable$i" OMP_NUM_THREADS=1 PYTHONPATH="$PWD" \
        "${PYTHON:-python3}" -m torch.distributed.run --nnodes=2 --node-rank="$i" --nproc_per_node=1 --master-addr="${addresses[0]}" --master-port=29517 \
        -m onecycle_callback "$@" > "$work/$i.out" 2> "$work/$i.err"
}
bytes() { ip netns exec "${hosts[0]}" cat "/sys/class/net/cable0/statistics/$1_bytes"; }

start 0 "$@" & first=$!
start 1 "$@" & second=$!
code=0
wait "$first" || code=$?
wait "$second" || code=$?
cat "$work/0.out"
cat "$work/0.err" "$work/1.err" >&2
echo "the second host printed $(wc -c < "$work/1.out") bytes and left $(find "$work/1" -type f | wc -l) files; the first left: $(ls "$work/0")"
echo "over the cable: $(bytes tx) bytes there, $(bytes rx) bytes back"
exit "$code"
