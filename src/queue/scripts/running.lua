-- Beginning runs.

-- Gives the job `id`, which is or will be in active, to the run that `token` names; false when its key holds no hash.
local function begin_run(q, id, token, lock, now)
  local job = q.prefix .. id
  if type(redis.pcall('HSET', job, 'processedOn', now)) == 'table' then
    return false
  end
  redis.call('SET', job .. ':lock', token, 'PX', lock)
  redis.call('PUBLISH', q.prefix .. 'active@' .. q.publisher, id)
  return true
end

-- The fields of a job; nil when there is no such job.
local function fields_of(job)
  local fields = redis.pcall('HGETALL', job)
  if not fields.err and #fields > 0 then
    return fields
  end
end

-- Takes the next jobs, in turn for the runs that `tokens` name: their ids, less of them when no more wait. Then whether one
-- should look again, or Redis's error. Ids without a job are dropped instead of running as empty jobs, some 1000 at most.
-- The caller has seen that active is a list.
local function take_next(q, tokens, lock, now)
  local taken, looks = {}, 0
  while #taken < #tokens do
    looks = looks + 1
    if looks > 1000 then
      return taken, true
    end
    local ids = redis.pcall('RPOP', q.wait, #tokens - #taken)
    if not ids or ids.err then
      return taken, false, ids or nil
    end
    local jobs = {}
    for i, id in ipairs(ids) do
      jobs[i] = q.prefix .. id
    end
    local all = redis.call('EXISTS', unpack(jobs)) == #jobs
    local before = #taken
    for i, id in ipairs(ids) do
      if (all or #jobs > 1 and redis.call('EXISTS', jobs[i]) == 1) and begin_run(q, id, tokens[#taken + 1], lock, now) then
        taken[#taken + 1] = id
      end
    end
    if #taken > before then
      redis.call('LPUSH', q.active, unpack(taken, before + 1))
    end
    redis.pcall('ZREM', q.priority, unpack(ids))
  end
  return taken, false
end
