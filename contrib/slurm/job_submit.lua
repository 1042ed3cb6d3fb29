-- /etc/slurm/job_submit.lua on the machine of slurmctld.
--
-- A --carme job may only start where Carme can seal it: on nodes with the feature
-- "carme", which a node has while its self-test passes. The rule adds that
-- constraint and refuses what can never be sealed. It is the outer fence: on a
-- node the plugin itself refuses to run a job unsealed, but no code in a plugin
-- helps where the plugin is missing.
--
-- A site with a job_submit.lua of its own keeps this file beside it, loads it with
-- dofile(), and calls carme_submit and carme_modify from its own two functions.
--
-- How an option of a SPANK plugin arrives here (Slurm 22.05 to 26.05):
--   srun, salloc, sbatch   spank_job_env, a table of "NAME=VALUE" whose indexes
--                          begin at 0, so ipairs() would miss the first
--   slurmrestd             environment, as the poster wrote it
-- "(null)" is what an option without a value looks like in spank_job_env.

local FEATURE = "carme"
local OPTION = "_SLURM_SPANK_OPTION_carme_carme"
local REFUSAL = "_SLURM_SPANK_OPTION_carme_no_carme"

local function from_spank_env(env)
	local options = {}
	for _, entry in pairs(env or {}) do
		local name, value = string.match(entry, "^([^=]+)=(.*)$")
		if name ~= nil then
			options[name] = value
		end
	end
	return options
end

-- The value of --carme, or nil when these options do not ask for Carme. --no-carme
-- beside --carme is a user's default (CARME) that was refused for this job; the
-- nodes read them in the same way.
local function asked(options)
	local value = options[OPTION]
	if value == nil or value == "no" or value == "0" or options[REFUSAL] ~= nil then
		return nil
	end
	return value
end

local function wanted(job)
	local options = from_spank_env(job.spank_job_env)
	if options[OPTION] == nil and job.environment ~= nil then
		options = job.environment
	end
	return asked(options)
end

local function has_feature(features)
	for name in string.gmatch(features or "", "[^&|,%s()%[%]]+") do
		if name == FEATURE then
			return true
		end
	end
	return false
end

-- The constraint with Carme's feature added, or nil when there is no way to write
-- both: Slurm takes "&" neither beside counts (a*2) nor beside [a|b].
local function with_feature(features)
	if features == nil or features == "" then
		return FEATURE
	end
	if string.find(features, "[%[%]%*]") then
		return nil
	end
	if string.find(features, "|", 1, true) then
		return "(" .. features .. ")&" .. FEATURE
	end
	if has_feature(features) then
		return features
	end
	return features .. "&" .. FEATURE
end

local function refuse(text)
	slurm.log_user("carme: " .. text)
	return slurm.ERROR
end

local function constrain(job, features)
	local both = with_feature(features)
	if both == nil then
		return refuse("the constraint '" .. features .. "' cannot be combined with the feature '" ..
			FEATURE .. "' that --carme needs; write it without [ ] and *")
	end
	if both ~= features then
		job.features = both
	end
	return slurm.SUCCESS
end

-- Which kind of shared GPU a TRES string asks for, such as "gres/shard:2" or, in
-- older releases, "gres:shard:2"; nil for none.
local function shared_gpu(tres)
	for name in string.gmatch(tres or "", "([%a_]+)") do
		if name == "shard" or name == "mps" then
			return name
		end
	end
	return nil
end

-- Nodes hear of a job's options from spank_job_env alone, before the job's first
-- step (contrib/slurm/prolog).
local function nodes_will_not_know(job)
	for _, entry in pairs(job.spank_job_env or {}) do
		if string.find(entry, "^_SLURM_SPANK_OPTION_carme_") then
			return false
		end
	end
	return true
end

function carme_submit(job)
	if wanted(job) == nil then
		return slurm.SUCCESS
	end
	if nodes_will_not_know(job) then
		return refuse("the job has " .. OPTION .. " in its environment alone; " ..
			"post it in spank_environment too, or submit with sbatch --carme")
	end
	if job.container ~= nil and job.container ~= "" then
		return refuse("--carme and --container exclude each other: Slurm's container would run outside the seal; " ..
			"leave one of them out")
	end
	for _, field in ipairs({ "tres_per_job", "tres_per_node", "tres_per_socket", "tres_per_task" }) do
		local shared = shared_gpu(job[field])
		if shared ~= nil then
			return refuse("gres/" .. shared .. " lets several jobs share a GPU, which --carme cannot seal off; " ..
				"ask for whole GPUs or MIG devices with --gres=gpu:N")
		end
	end
	return constrain(job, job.features)
end

-- scontrol update of a waiting job: a new constraint must not lose the feature. A
-- job that came through slurmrestd is known by its constraint alone: the record of
-- a job shows no environment here.
function carme_modify(change, job)
	if change.features == nil then
		return slurm.SUCCESS
	end
	if asked(from_spank_env(job.spank_job_env)) == nil and not has_feature(job.features) then
		return slurm.SUCCESS
	end
	return constrain(change, change.features)
end

function slurm_job_submit(job_desc, part_list, submit_uid)
	return carme_submit(job_desc)
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
	return carme_modify(job_desc, job_rec)
end

return slurm.SUCCESS
