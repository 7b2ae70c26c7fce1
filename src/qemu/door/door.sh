# The guest's end of the door; src/qemu/door.rs says what is spoken. It starts before anything is mounted, so it asks nothing of
# the system but a kernel with cgroup v2, dash, coreutils, modprobe and mount.
chunk=262144
base=/run/door
io=$base/io

modprobe -q virtio_console
tries=0
while :; do
  for name in /sys/class/virtio-ports/*/name; do
    [ -r "$name" ] && read -r text <"$name" && [ "$text" = kiln.door ] && [ -c "/dev/$(basename "${name%/name}")" ] && break 2
  done
  tries=$((tries + 1))
  [ "$tries" -gt 1200 ] && exit 1
  sleep 0.1
done
set -f
exec 3<>"/dev/$(basename "${name%/name}")"

read -r boot </proc/sys/kernel/random/boot_id
session=$boot.$$
# This unit's cgroup is delegated: commands get one below it, so that all that came of a command can be killed at once.
while IFS=: read -r number controllers path; do top=/sys/fs/cgroup$path; done </proc/self/cgroup
watch=$top/watch
mkdir -p "$watch" "$io"
n=0
group=

# A cgroup nobody is in, and files that no process of an earlier command has open. A size of 64 MiB bounds what a command can
# write to its output; a daemon that goes on writing fills its own.
fresh() {
  n=$((n + 1))
  group=$top/run$n
  mkdir -p "$group"
  mount -t tmpfs -o size=64m,mode=0700 kiln-door "$io"
}

run() {
  id=$1 limit=$2 bytes=$3 text=$4
  case "$id $limit $bytes" in *[!0-9.\ ]* | ' '* | *' ' | *'  '*) return ;; esac
  busy=1
  { read -r word busy <"$group/cgroup.events"; } 2>/dev/null
  [ "$busy" = 0 ] || fresh
  : >"$base/late"
  printf %b "$text" >"$base/command" || { printf 'broken %s\n' "$id" >&3; return; }
  input=/dev/null
  if [ "$bytes" -gt 0 ]; then
    input=$io/in
    timeout 120 head -c "$bytes" <&3 | base64 -d >"$input" || { printf 'broken %s\n' "$id" >&3; return; }
  fi
  : >"$io/out"
  : >"$io/err"
  stuck=
  read -r begin rest </proc/uptime
  # A shell without job control makes its background jobs deaf to INT and QUIT.
  (
    exec 3>&-
    echo 0 >"$group/cgroup.procs"
    echo 0 >/proc/self/oom_score_adj
    exec setsid env --default-signal=INT,QUIT /bin/sh "$base/command" <"$input" >>"$io/out" 2>>"$io/err"
  ) &
  job=$!
  (
    exec 3>&-
    echo 0 >"$watch/cgroup.procs"
    sleep "$limit"
    echo late >"$base/late"
    echo 1 >"$group/cgroup.kill"
    # What hangs in the kernel does not even die; it is then left behind.
    sleep 3
    kill -USR1 $$
  ) &
  watcher=$!
  wait "$job"
  status=$?
  echo 1 >"$watch/cgroup.kill"
  wait "$watcher"
  read -r end rest </proc/uptime
  ending=done
  [ -s "$base/late" ] && ending=late
  [ -n "$stuck" ] && ending=stuck
  outs=0 errs=0
  if [ -s "$io/out" ] || [ -s "$io/err" ]; then
    set -- $(stat -c %s "$io/out" "$io/err")
    outs=$1 errs=$2
  fi
  printf 'answer %s %s %s %s %s %s %s\n' "$id" "$status" "$ending" "$begin" "$end" "$outs" "$errs" >&3
  [ "$outs" = 0 ] || part out 0
  [ "$errs" = 0 ] || part err 0
  printf 'end %s\n' "$id" >&3
}

# A part of what the last command wrote.
part() {
  {
    printf '%s %s ' "$1" "$id"
    dd if="$io/$1" iflag=skip_bytes,count_bytes skip="$2" count=$chunk bs=65536 status=none | base64 -w0
    echo
  } >&3
}

more() {
  id=$1
  part "$2" "$3"
  printf 'end %s\n' "$id" >&3
}

crash() {
  printf 'answer %s 0 done 0 0 0 0\nend %s\n' "$1" "$1" >&3
  echo c >/proc/sysrq-trigger
}

trap 'stuck=1' USR1
printf '\nhello %s\n' "$session" >&3
while :; do
  # Nothing to read means that nobody is at the other end.
  if ! read -r verb given words <&3; then
    sleep 0.2
    continue
  fi
  case $verb in
    hello) printf 'hello %s %s\n' "$session" "$given" >&3 ;;
    run | more | crash) [ "$given" = "$session" ] && $verb $words ;;
  esac
done
