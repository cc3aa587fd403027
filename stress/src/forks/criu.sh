# What CRIU does on either machine, for criu.rs: `sh criu.sh VERB …`. Times are printed in milliseconds.
set -e
base=/dev/shm/criu
images=$base/images
port=7733
pages_port=7734
now() { awk '{ print int($1 * 1000) }' /proc/uptime; }
# until_true COMMAND…: for what another process is about to do.
until_true() {
    i=0
    until "$@"; do
        i=$((i + 1))
        [ "$i" -lt 1000 ] || { echo "criu.sh: $* never came true" >&2; exit 1; }
        usleep 10000
    done
}
listens() { grep -q ":$(printf '%04X' "$1") 0*:0000 0A" /proc/net/tcp /proc/net/tcp6; }
# failed LOG: CRIU's own reason.
failed() {
    echo "CRIU failed: $(grep -h Error "$1" | tail -n 5)" >&2
    exit 1
}
pid() { cat "$base/pid"; }

verb=$1
shift
case $verb in
# warm: CRIU finds out what the kernel can, and notes it for the next time. What it misses here is of no use to the process.
warm)
    criu check >/dev/null 2>&1 || true
    [ -e /run/criu.kdat ] || { criu check 2>&1 | tail -n 5 >&2; exit 1; }
    ;;
# start MIB SECRET: the process, which is told through a FIFO and answers into a file.
start)
    rm -rf "$base"
    mkdir -p "$images"
    mkfifo "$base/in"
    # Its number has to be free on the other machine too.
    echo 30000 >/proc/sys/kernel/ns_last_pid
    # It notes its number itself: of other walkers some may still be about.
    setsid sh -c 'echo "$$" >"$0/pid"; exec ./fork-walker "$@" small 0<>"$0/in" >"$0/out" 2>&1' "$base" "$1" "$2" &
    until_true grep -qs ready "$base/out"
    ;;
# receive: makes ready for what `send` sends; returns once it listens.
receive)
    rm -rf "$base"
    mkdir -p "$images"
    mkfifo "$base/in"
    (cd "$base" && exec setsid nc -l -p "$port" -e sh -c 'tar x && cat >/dev/null && echo received') \
        </dev/null >/dev/null 2>&1 &
    until_true listens "$port"
    ;;
# dump: takes the process apart, and ends it.
dump)
    begun=$(now)
    criu dump -t "$(pid)" -D "$images" -o dump.log || failed "$images/dump.log"
    echo "dump_ms=$(($(now) - begun))"
    ;;
# dump-lazily: likewise, but its pages stay, and are given to who asks for them.
dump-lazily)
    begun=$(now)
    mkfifo "$base/status"
    setsid criu dump -t "$(pid)" -D "$images" -o dump.log --lazy-pages --address 0.0.0.0 --port "$pages_port" \
        --status-fd 3 3>"$base/status" </dev/null >/dev/null 2>&1 &
    # A byte once it serves, or the end.
    [ -n "$(dd if="$base/status" bs=1 count=1 2>/dev/null | od -An -tx1)" ] || failed "$images/dump.log"
    echo "dump_ms=$(($(now) - begun))"
    ;;
# send ADDRESS: images, and what the process has said so far.
send)
    begun=$(now)
    answer=$( (cd "$base" && tar c out pid images) | nc "$1" "$port")
    [ "$answer" = received ] || { echo "criu.sh: the other machine did not take the images" >&2; exit 1; }
    echo "copy_ms=$(($(now) - begun)) kib=$(du -sk "$images" | cut -f1)"
    ;;
# restore: the process goes on.
restore)
    begun=$(now)
    criu restore -d -D "$images" -o restore.log || failed "$images/restore.log"
    echo "restore_ms=$(($(now) - begun))"
    ;;
# restore-lazily ADDRESS: likewise, and asks for pages when they are touched.
restore-lazily)
    begun=$(now)
    (cd "$images" && setsid criu lazy-pages --page-server --address "$1" --port "$pages_port" -D "$images" -o lazy.log \
        </dev/null >/dev/null 2>&1) &
    until_true [ -S "$images/lazy-pages.socket" ]
    criu restore -d --lazy-pages -D "$images" -o restore.log || failed "$images/restore.log"
    echo "restore_ms=$(($(now) - begun))"
    ;;
# check: the process walks over its memory, and ends.
check)
    echo read >"$base/in"
    until_true grep -q walked: "$base/out"
    grep walked: "$base/out"
    echo end >"$base/in"
    until_true [ ! -d "/proc/$(pid)" ]
    ;;
# clear: nothing of it stays.
clear)
    killall -9 criu 2>/dev/null || true
    [ ! -e "$base/pid" ] || kill -9 "$(pid)" 2>/dev/null || true
    rm -rf "$base"
    ;;
esac
