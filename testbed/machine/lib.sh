# shellcheck shell=bash disable=SC2034
# Shared by the scripts that run inside the machines of the testbed.

log=/var/log/testbed
people=/usr/local/lib/testbed/people

say() { printf '%s %s: %s\n' "$(date +%T)" "${0##*/}" "$*" >&2; }

die() { say "$*"; exit 1; }

# wait_for SECONDS WHAT COMMAND...: until the command succeeds, or die by name.
wait_for() {
	local limit=$1 what=$2
	shift 2
	local end=$((SECONDS + limit))
	until "$@" >/dev/null 2>&1; do
		((SECONDS < end)) || die "no $what after $limit s"
		sleep 0.1
	done
}

# each_person COMMAND: calls COMMAND NAME UID GROUPS for everyone.
each_person() {
	local name uid groups
	while read -r -u 3 name uid groups; do
		[[ -z $name || $name == \#* ]] || "$1" "$name" "$uid" "$groups"
	done 3<"$people"
}
