# The cluster of containers that integration tests, demo and benchmarks use.
SLURM_SUITE ?= trixie
export SLURM_SUITE

.PHONY: testbed testbed-down testbed-install testbed-logs

testbed: ## bring the cluster up (SLURM_SUITE=trixie|forky); does nothing when it is up
	@testbed/bin/up

testbed-install: ## build the product again and put it into the running cluster
	@testbed/bin/install
	@testbed/bin/portal

testbed-logs: ## the last lines of every machine's logs
	@testbed/bin/logs

testbed-down: ## take the cluster away: containers, network, volume
	@testbed/bin/down
