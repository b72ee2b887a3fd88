# Prints the medians over the rounds of bench_peers.sh, and the medians of the ratios to
# a peer's ways. `peers` names these and the heads of their columns: "way=head;way=head".
#
# A line of ours or of a peer has a model, a way, a time, and perhaps a result of the
# computation, separated by spaces of which there are at least two. The results for a
# model must be equal, or else the programs do not compute the same.
BEGIN {
    FS = "  +"
    columns = split(peers, peer, ";")
    for (i = 1; i <= columns; i++) {
        split(peer[i], words, "=")
        peer[i] = words[1]
        head[i] = words[2]
    }
}

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

# The ratios to the time of another way, round by round.
function ratios(model, way, other,    times, others, list, n, i) {
    n = split(all[model, way], times, " ")
    split(all[model, other], others, " ")
    for (i = 1; i <= n; i++)
        list = list " " times[i] / others[i]
    return list
}

$3 ~ /^[0-9.]+ ms/ {
    if (!(($1, $2) in all))
        line[++lines] = $1 SUBSEP $2
    all[$1, $2] = all[$1, $2] " " $3 + 0
}

$5 ~ /^energy / {
    energy = substr($5, length("energy ") + 1) + 0
    if (!($1 in first))
        first[$1] = energy
    deviation = energy / first[$1] - 1
    if (deviation < -1e-10 || deviation > 1e-10)
        wrong = wrong sprintf("error: %s, %s: energy %.12e, and not %.12e\n", $1, $2, energy, first[$1])
}

END {
    printf "\n\nmedians over the rounds, and as multiples of"
    for (i = 1; i <= columns; i++)
        printf "%s %s", i == 1 ? "" : " and", peer[i]
    printf "\n\n%-14s%-28s%12s", "model", "way", "step"
    for (i = 1; i <= columns; i++)
        printf "%12s", head[i]
    print ""
    for (i = 1; i <= lines; i++) {
        split(line[i], words, SUBSEP)
        printf "%-14s%-28s%9.2f ms", words[1], words[2], median(all[words[1], words[2]])
        for (j = 1; j <= columns; j++)
            printf "%12.2f", median(ratios(words[1], words[2], peer[j]))
        print ""
    }
    printf "%s", wrong
    exit wrong != ""
}
