# Runs before `ray start` in every Ray container, as `sh -c TEXT sh ray start ...`: what must be in order before Ray looks.

# A restarted container still holds the log files of its last life; their writers are dead, but Ray's log monitor tells
# that by the pid, and pids repeat: it would send every line to its job's log a second time. `old` is where the log monitor
# itself puts the files of dead workers.
for logs in /tmp/ray/session_2*/logs; do
  [ -d "$logs" ] && mkdir -p "$logs/old" && find "$logs" -maxdepth 1 -name 'worker-*' -exec mv -t "$logs/old" {} +
done

# What follows runs beside Ray, as grandchildren, so that the container's init buries them; $$ is `ray` by then.
bin=$(command -v "$1") && python=$(dirname "$bin")/python
[ -x "$python" ] || python=python3

# Logs that Ray does not rotate.
if [ -f /opt/labd/janitor.py ]; then
  (
    while sleep 15 && kill -0 "$$" 2>/dev/null; do "$python" -I -S /opt/labd/janitor.py; done &
  )
fi

# Ray's server for connections from notebooks (`ray.init()` in JupyterLab). It runs what people write there, so Ray's own
# way of having it in the head would put the head at stake: it is here, where drivers of jobs are.
connections() { # GCS HOST PORT PORT-OF-RAY'S-ENVIRONMENT-AGENT
  # Killed first when memory runs out, before drivers of jobs (300) and Ray itself (0); processes made for each notebook
  # inherit it.
  echo 1000 >/proc/self/oom_score_adj
  listens=$(printf ':%04X [0-9A-F]*:0000 0A' "$4")
  pause=1
  # Only once the node is up: before, it would cost the node time, and fail.
  until grep -qE "$listens" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do
    sleep 1
    kill -0 "$$" 2>/dev/null || return
  done
  while kill -0 "$$" 2>/dev/null; do
    began=$(date +%s)
    # No fork handlers of gRPC: with them, one in four of its children died before it ran. The log is in a file of its own,
    # since it may hold what people pass as their environment.
    GRPC_ENABLE_FORK_SUPPORT=0 "$python" -m ray.util.client.server --address="$1" --host="$2" --port="$3" --mode=proxy \
      --runtime-env-agent-address="http://$2:$4" >>/tmp/ray/session_latest/logs/ray_client_server.log 2>&1
    code=$?
    [ $(($(date +%s) - began)) -lt 60 ] || pause=1
    echo "labd: the server for notebooks' Ray connections ended with exit code $code; the next one starts in $pause s"
    sleep "$pause"
    pause=$((pause * 2))
    [ "$pause" -le 30 ] || pause=30
  done
}
if [ -n "${LABD_CONNECTIONS:-}" ]; then
  arguments=$LABD_CONNECTIONS
  unset LABD_CONNECTIONS
  (
    connections $arguments &
  )
fi
# The head would start one, too, and more at once than it needs at once; the other nodes would wait for more than they need.
if [ -d /opt/labd/start ]; then
  export RAY_START_HOOK=labd_start.before_start PYTHONPATH="/opt/labd/start${PYTHONPATH:+:$PYTHONPATH}"
fi

# Worker processes are forked from a process that has imported what they will need, unless LABD_WARM=0: beside workers and
# drivers, for as long as Ray lives. An image that is not labd's has no such module.
warm=$(ls "${bin%/bin/*}"/lib/python3*/site-packages/labd_warm.py 2>/dev/null)
kind=serve
case " $* " in
  *" --head "*) kind= ;;
  *labd.role=driver*) kind=serve-light ;; # Ray's own actors run there, and no torch
esac
if [ -n "$warm" ] && [ -n "$kind" ] && [ "${LABD_WARM:-1}" != 0 ]; then
  # 0 is its own word that it is of no use here.
  (cd / && while kill -0 "$$" 2>/dev/null && ! "$python" -m labd_warm "$kind"; do sleep 5; done &)
fi

# The rest is for a head that keeps its state (RAY_gcs_storage_path names its folder on a volume). Ray neither repairs a
# damaged state nor promises to read another version's: such a state is set aside, never deleted, and a fresh one begins.
state=${RAY_gcs_storage_path:-}
mark=$state.ray-version # which Ray wrote it
made=$state.made # there was one: what is missing now was taken away
stamp=/tmp/labd-started # older than every log of this life

# What a life that began at the stamp found wrong with the state, in RocksDB's words; nothing where it found nothing.
# Only what no retry can mend counts: a full disk, a file that may not be read, a lock that another head holds are not it.
damage() {
  find /tmp/ray/session_2*/logs -maxdepth 1 -name 'gcs_server*' -newer "$stamp" -exec cat {} + 2>/dev/null |
    grep -F "rocksdb_store_client" |
    grep -oE "Corruption: .*|job counter .* is (corrupt|out of int range).*|IO error: No such file or directory: .*" |
    grep -vE "No space left|Permission denied|Resource temporarily|Read-only file system|Input/output error" |
    head -n 1 | cut -c 1-200
}

set_aside() { # REASON WORDS: the folder's name says why, and so does the log
  aside=${state%/*}/set-aside-$1-$(date -u +%Y%m%dT%H%M%SZ)
  if ! mv -T "$state" "$aside"; then
    echo "labd: the head's state ($2) could not be set aside as $aside; mend the disk of the volume under ${state%/*}" >&2
    exit 1
  fi
  rm -f "$made"
  echo "labd: the head's state $2 was set aside as $aside; a fresh one begins"
}

if [ "${RAY_gcs_storage:-}" = rocksdb ] && [ -n "$state" ]; then
  # The folder's name says it at once; asking Ray itself means importing it.
  bin=$(command -v "$1") && bin=$(readlink -f "$bin")
  version=
  for info in "${bin%/bin/*}"/lib/python3*/site-packages/ray-[0-9]*.dist-info; do
    [ -d "$info" ] && version=${info##*/ray-} && version=${version%.dist-info}
  done
  [ -n "$version" ] || version=$("$1" --version 2>/dev/null | sed -n 's/^ray, version //p')
  # Empty where a power cut came before its bytes: then nobody knows, and the state is tried.
  writer=$(cat "$mark" 2>/dev/null)
  wrong=$(damage)
  # Ray writes both; with a state but without the session's name it makes up another name and stops at the mismatch, for ever.
  if [ -z "$wrong" ] && [ -e "$state/kv/CURRENT" ] && ! grep -qaxE 'session_[0-9_-]+' "$state/session_name" 2>/dev/null; then
    wrong="its session_name is missing or none"
  fi
  if [ -d "$state" ]; then
    if [ -n "$wrong" ]; then
      set_aside damaged "is damaged ($wrong) and"
    elif [ -n "$version" ] && [ -n "$writer" ] && [ "$version" != "$writer" ]; then
      set_aside "$writer" "of Ray $writer"
    fi
  fi
  if [ -e "$made" ] && [ ! -e "$state/kv/CURRENT" ]; then
    rm -f "$made"
    echo "labd: the head's state is gone from $state although there was one; a fresh one begins, and labd hands in unfinished jobs again"
  fi
  mkdir -p "${state%/*}"
  if [ -n "$version" ]; then echo "$version" >"$mark.new" && mv "$mark.new" "$mark"; fi
  : >"$stamp"
  # Ray's state server gives up at once, but `ray start` goes on asking it for 40 s, deaf to SIGTERM meanwhile.
  (
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
      sleep 1
      [ ! -e "$state/kv/CURRENT" ] || : >"$made"
      kill -0 "$$" 2>/dev/null || break
      wrong=$(damage)
      [ -n "$wrong" ] || continue
      echo "labd: the head's state is damaged ($wrong); the head ends, and its next start sets the state aside"
      kill -HUP "$$"
      break
    done &
  )
fi
# Where the image has it, one process imports Ray for all of Ray's own programs on this node; labd_node.py says how.
node=${warm%labd_warm.py}labd_node.py
if [ -n "$warm" ] && [ -f "$node" ] && [ "${LABD_WARM:-1}" != 0 ]; then
  found=$(command -v "$1") && shift
  [ -x "${found%/*}/python3" ] && python=${found%/*}/python3
  exec "$python" -u "$node" "$found" "$@"
fi
exec "$@"
