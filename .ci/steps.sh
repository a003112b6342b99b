# Runs steps, the functions step_NAME of the script that sources this, and counts what they say. To be sourced with logs set, a directory.
# Exit statuses of a step: 0 passed, 77 skipped (it said why), else failed.
# shellcheck shell=bash
SKIP=77
passed=0 failed=0 skipped=0
table=

# Adds what the step's own output counts: Rust's test summaries, or a last line in this script's form.
count() { # LOG; sets p f s
    read -r p f s < <(awk '
        /^test result: / { for (i = 1; i < NF; i++) { if ($(i + 1) == "passed;") p += $i; if ($(i + 1) == "failed;") f += $i; if ($(i + 1) == "ignored;") s += $i } }
        /^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$/ { p += $1; f += $3; s += $5 }
        END { print p + 0, f + 0, s + 0 }' "$1")
}

# What a reader wants to see of a step that has ended; a script may have one of its own.
show() { # NAME LOG VERDICT
    :
}

run_step() { # NAME
    local log=$logs/$1.log begin=$SECONDS status verdict p f s
    echo "=== $1"
    "step_$1" >"$log" 2>&1
    status=$?
    count "$log"
    case $status in
    0) verdict=ok; passed=$((passed + (p > 0 ? p : 1))); skipped=$((skipped + s)) ;;
    $SKIP) verdict=skipped; skipped=$((skipped + 1)); grep -i 'skipped' "$log" ;;
    *)
        verdict=FAILED
        passed=$((passed + p)); failed=$((failed + (f > 0 ? f : 1))); skipped=$((skipped + s))
        explain "$log"
        ;;
    esac
    show "$1" "$log" "$verdict"
    table+=$(printf '%-12s %-8s %6d s   %s' "$1" "$verdict" $((SECONDS - begin)) "$([ $((p + f + s)) -gt 0 ] && echo "$p passed, $f failed, $s skipped")")$'\n'
}

# What a reader needs of a failed step: the failures themselves, then the end of the log.
explain() { # LOG
    echo "--- failed; from $1:"
    grep -n -E '^(([0-9:]{8} )?FAIL |error(\[|:)|test .* FAILED|thread .* panicked|---- )' "$1" | head -n 60
    # What each failed test said itself: a fault that comes once in a hundred runs must be read from here.
    awk '
        /^---- .* stdout ----$/ { left = 80 }
        /^--- the broker.s output/ { if (left) print "[the log has more output of its brokers]"; left = 0 }
        left > 0 { print; left-- }' "$1" | head -n 300
    echo "--- the end of the log:"
    tail -n 60 "$1"
    echo "---"
}

# Runs the steps, then prints the summary. The exit status is that of the script.
run_steps() { # NAME…
    local step
    for step in "$@"; do run_step "$step"; done
    echo "=== summary ($((SECONDS / 60)) min $((SECONDS % 60)) s)"
    printf '%s' "$table"
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]
}
