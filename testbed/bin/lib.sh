# shellcheck shell=bash disable=SC2034
# Shared by the scripts that bring the testbed up and down. They run on the
# machine that holds the containers and need bash, Docker, tar and (when no image
# registry is reachable) mmdebstrap.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
suite=${SLURM_SUITE:-trixie}
machines=(carme-ldap carme-ctl carme-login carme-node1 carme-node2)
# A second cluster beside the first: TESTBED_INSTANCE=try makes try-carme-ctl and so
# on. Inside, the machines keep their names.
# Browsers are tested on one release; the image with JupyterLab takes minutes to make.
[[ $suite == trixie ]] && lab=carme-labimage || lab=carme-nolab
prefix=${TESTBED_INSTANCE:+$TESTBED_INSTANCE-}
label=org.carme.${prefix}testbed
network=${prefix}carme-testbed
volume=${prefix}carme-testbed-home
state=$repo/.cache/testbed

# The classic builder is in every Docker; buildx is not.
export DOCKER_BUILDKIT=0

say() { printf '%4d s  %s\n' "$SECONDS" "$*" >&2; }

die() { say "$*"; exit 1; }

# wait_for SECONDS WHAT COMMAND...: until the command succeeds; otherwise the logs
# are shown and the script ends.
wait_for() {
	local limit=$1 what=$2
	shift 2
	local end=$((SECONDS + limit))
	until "$@" >/dev/null 2>&1; do
		if ((SECONDS >= end)); then
			say "no $what after $limit s; the machines' last words:"
			"$repo/testbed/bin/logs" 40 >&2 || true
			die "no $what after $limit s"
		fi
		sleep 0.2
	done
}

role_of() { # carme-node1 -> node
	local r=${1#carme-}
	echo "${r%[0-9]}"
}

# Installs and starts what is missing, or says what to do about it.
need_docker() {
	docker info >/dev/null 2>&1 && return
	"$repo/tools/prepare" testbed
}

build_image() { # build_image TARGET [DOCKERFILE]
	local out=$state/build-$1-$suite.log file=$repo/${2:-Dockerfile.slurm-testbed}
	local args=(--network host --target "$1" --build-arg "SUITE=$suite" --build-arg "LAB=$lab" -t "carme-$1:$suite" -f "$file" "$repo")
	mkdir -p "$state"
	if ! docker build -q "${args[@]}" >"$out" 2>&1; then
		# -q hides what failed; say it once more, aloud, from the cached layers on.
		docker build "${args[@]}" 2>&1 | tail -40 >&2
		die "image $1 of $suite does not build"
	fi
}

# build_lab makes the image that lab names.
build_lab() {
	if [[ $lab == carme-labimage ]]; then
		build_image labimage testbed/lab/Dockerfile
	else
		printf 'FROM carme-base:%s\nRUN touch /lab.sif\n' "$suite" | docker build -q -t "$lab:$suite" - >/dev/null 2>&1 ||
			die "image $lab of $suite does not build"
	fi
}
