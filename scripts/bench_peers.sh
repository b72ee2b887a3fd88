#!/usr/bin/env bash
# Times training steps with DataParallel and with PyTorch's DistributedDataParallel on
# gloo, in rounds in which both programs take turns, and prints medians over the rounds.
# The argument is the number of rounds. PYTORCH is the folder that has PyTorch.
set -euo pipefail

rounds=${1:-3}
output=$(mktemp)
trap 'rm -f "$output"' EXIT

cargo bench --bench data_parallel --no-run
for ((round = 1; round <= rounds; round++)); do
    printf '\n==== Round %d of %d ====\n\n' "$round" "$rounds"
    cargo bench --quiet --bench data_parallel
    OMP_NUM_THREADS=1 PYTHONPATH=$PYTORCH python3 -W ignore benches/peers/ddp.py
done | tee "$output"

# A line of both programs has a model, a way and a time, separated by spaces of which
# there are at least two.
awk -F '  +' '
function median(list,    words, n, i, j, word) {
    n = split(list, words, " ")
    for (i = 2; i <= n; i++) {
        word = words[i] + 0
        for (j = i - 1; j > 0 && words[j] + 0 > word; j--)
            words[j + 1] = words[j]
        words[j + 1] = word
    }
    return words[int(n / 2) + 1]
}
# The median over the rounds of the ratios to the time of another way.
function ratio(model, way, other,    times, others, list, n, i) {
    n = split(all[model, way], times, " ")
    split(all[model, other], others, " ")
    for (i = 1; i <= n; i++)
        list = list " " times[i] / others[i]
    return median(list)
}
$3 ~ /^[0-9.]+ ms/ {
    if (!(($1, $2) in all))
        line[++lines] = $1 SUBSEP $2
    all[$1, $2] = all[$1, $2] " " $3 + 0
}
END {
    ddp = "DistributedDataParallel"
    view = "DDP, gradient_as_bucket_view"
    printf "\n\nmedians over the rounds, and as multiples of " ddp ", by default and with views\n\n"
    printf "%-14s%-28s%12s%12s%12s\n", "model", "way", "step", "of default", "of views"
    for (i = 1; i <= lines; i++) {
        split(line[i], words, SUBSEP)
        model = words[1]
        way = words[2]
        printf "%-14s%-28s%9.2f ms%12.2f%12.2f\n", model, way, median(all[model, way]),
            ratio(model, way, ddp), ratio(model, way, view)
    }
}' "$output"
