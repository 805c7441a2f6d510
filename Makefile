# The face of the product. Each verb's work is in tools/, so that it can be read, typed and tested.
PYTHON ?= python3
export ENV YES TO FORCE DIRTY KEY HOST MEASURE CREATE ROTATE REVOKE ROLE TIER DAYS MODELS OVERLAP ONLY UPGRADE LAB_PREFIX LAB_NETWORK FLEET MUTANTS STATIONS SEED SECONDS ADDRESS CITADEL_CACHE PICTURES
export PYTHONDONTWRITEBYTECODE = 1
.DEFAULT_GOAL := help

.PHONY: help
help: ## print this list
	@echo "make VERB [ENV=lab|citadel|path of an inventory] [HOST=one of its LLM servers] [YES=1]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## build the estate on this machine, deploy into it, and get an answer from a model
plan: ## what a deploy would change, what it would restart and for how long
deploy: ## deploy this checkout, proven by real inference, or leave everything as it was; DIRTY=1: uncommitted changes too
rollback: ## return to the release before, or to TO=<id or content>; FORCE=1: one that is marked bad too
releases: ## every release on the server: age, state, what changed
keys: ## API keys: list them, or CREATE=name (ROLE= TIER= DAYS= MODELS=), ROTATE=id (OVERLAP=seconds), REVOKE=id
smoke: ## ask every model one question through the gateway
status: ## hosts and health
validate: ## whether a server can carry this product: found, needed, verdict and advice; nothing is touched
drift: ## what on a server is no longer as roles and release declared it, whose it is and why
untune: ## put back the settings of the kernel as they were before the first deployment
register: ## targets, rules, routes and dashboards on the metrics server, as a deployment puts them there
unregister: ## take them away again: every file there as it was before
destroy: ## remove the lab without a trace
capacity: ## whether the models of ENV=citadel fit a host: HOST=cores=24,ram=128,nodes=2,isa=amx or HOST=here
variants: ## which variants of each model a server has or could make, and what they lose: MEASURE=model finds out by vLLM
audit: ## what makes a server easier to break into than it has to be, each with a remedy
gateway: ## the gateway alone on this machine, before simulated models
check: ## lint, types, unit and render tests: no root, no lab
test: ## every test there is, on a lab of its own
mutate: ## small wrongs in the gateway's stations, which the tests have to notice: MUTANTS=60 STATIONS=admission,route
fuzz: ## strange requests beside an innocent client, on simulated models or ADDRESS= of a deployed gateway: SECONDS=300
prove-alerts: ## faults on a lab that stands, followed until somebody is told and until it is over: SECONDS=600 of health before
prove-usage: ## faults of companion, database and network on a lab that stands; each answered request is kept once
bench-deploy: ## time a cold demo, a warm one, and a deploy that changes nothing
bench-gateway: ## the gateway beside others, in one run
bench-companion: ## what usage, cache and shared limits cost the gateway, and how quick they are
bench-hostile: ## hostile clients beside an innocent one, for half an hour, on the gateway and on others
bench-serving: ## tuned vLLM and its variants beside an untuned one and llama.cpp; vectors that have to mean something
bench-host: ## what hugepages, governor, NUMA, cores and read-ahead are worth to a model that serves
bench-accuracy: ## what int8 and int4 cost a small language model that is trained on the spot
dashboards: ## what Grafana is given, from tools/dashboards; PICTURES=1 draws them from the answers of a running lab
lock: ## pin what requirements/*.in ask for anew, where that has changed: ONLY=gateway UPGRADE=fastapi

VERBS = demo plan deploy rollback releases keys smoke status validate drift untune register unregister destroy capacity \
	variants audit gateway check test mutate fuzz prove-alerts prove-usage bench-deploy bench-gateway bench-companion \
	bench-hostile bench-serving bench-host bench-accuracy dashboards lock
.PHONY: $(VERBS)
$(VERBS):
	@$(PYTHON) -m tools $@
