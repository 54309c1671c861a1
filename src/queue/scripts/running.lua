-- Beginning a run.

local function has_priority(fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'priority' then
      return fields[i + 1] ~= '0'
    end
  end
end

-- Gives the job in active, whose fields are these, to the run that `token` names: {2, id, fields}, without processedOn,
-- which is `now`.
local function begin_run(q, id, fields, token, lock, now)
  local job = q.prefix .. id
  redis.call('SET', job .. ':lock', token, 'PX', lock)
  if has_priority(fields) then
    redis.pcall('ZREM', q.priority, id)
  end
  redis.call('HSET', job, 'processedOn', now)
  redis.call('PUBLISH', q.prefix .. 'active@' .. q.publisher, id)
  return {2, id, fields}
end

-- The fields of a job; nil when there is no such job.
local function fields_of(job)
  local fields = redis.pcall('HGETALL', job)
  if not fields.err and #fields > 0 then
    return fields
  end
end

-- Takes the next job: as `begin_run`, or {0} nothing waits, {3} look again, or Redis's error. Ids without a job are dropped
-- instead of running as empty jobs, at most 1000.
local function take_next(q, token, lock, now)
  for _ = 1, 1000 do
    local id = redis.pcall('RPOPLPUSH', q.wait, q.active)
    if type(id) ~= 'string' then
      return id or {0}
    end
    local fields = fields_of(q.prefix .. id)
    if fields then
      return begin_run(q, id, fields, token, lock, now)
    end
    redis.call('LPOP', q.active)
    redis.pcall('ZREM', q.priority, id)
  end
  return {3}
end
