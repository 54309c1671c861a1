-- Ending runs, and what operators do. Needs finishing.lua and placing.lua.

-- The first key of the queue that holds something else than it should, or nil.
local function mistyped(q)
  return is_wrong(q.wait, 'list') or is_wrong(q.paused, 'list') or is_wrong(q.active, 'list') or is_wrong(q.delayed, 'zset')
    or is_wrong(q.priority, 'zset') or is_wrong(q.completed, 'zset') or is_wrong(q.failed, 'zset')
    or is_wrong(q.stalled, 'set') or is_wrong(q.repeats, 'zset') or is_wrong(q.counter, 'string')
    or is_wrong(q.pause_flag, 'string')
end

local function number_of(text, default)
  return tonumber(text or '') or default
end

-- 0 when `token` owns the job's lock.
local function ownership(job, lock, token)
  if not is_hash(job) then
    return MISSING
  end
  local owner = redis.call('GET', lock)
  if not owner then
    return NO_LOCK
  end
  return owner == token and 0 or OTHER_LOCK
end

-- Ends the run that owns the lock, and forgets an order to cancel it: 0 when its job was active.
local function leave_active(q, id, lock, order)
  redis.call('DEL', lock, order or lock)
  redis.call('SREM', q.stalled, id)
  return redis.call('LREM', q.active, -1, id) > 0 and 0 or NOT_ACTIVE
end

-- Stores the job as finished with `field` = `value`, or deletes it when none is to be kept.
local function finish(q, finished, id, now, field, value, count, age)
  local name = redis.call('HGET', q.prefix .. id, 'deid')
  if name then
    release_debounce(q, id, name)
  end
  if count == 0 then
    forget(q.prefix, id)
    return
  end
  redis.call('ZADD', finished, now, id)
  redis.call('HSET', q.prefix .. id, field, value, 'finishedOn', now)
  retain(q, finished, tonumber(now), count, age)
end

-- Puts `id` where it is taken next, whatever its priority.
local function push_first(q, id, priority)
  if priority > 0 then
    redis.call('ZADD', q.priority, priority, id)
  end
  redis.call('RPUSH', line_of(q), id)
end

-- Puts `id` before those of its own priority; one without a priority before all, as Bull does.
local function push_before_its_equals(q, id, priority)
  local line = line_of(q)
  local pivot
  if priority > 0 then
    redis.call('ZADD', q.priority, priority, id)
    local ahead = redis.call('ZCOUNT', q.priority, 0, string.format('(%.17g', priority))
    pivot = ahead > 0 and redis.call('LINDEX', line, math.max(0, redis.call('LLEN', line) - ahead))
  end
  if pivot then
    redis.call('LINSERT', line, 'BEFORE', pivot, id)
  else
    redis.call('RPUSH', line, id)
  end
end

-- A member of a stored `opts`; nil when it is absent or null, or the options cannot be read.
local function option(job, member)
  local readable, opts = pcall(cjson.decode, redis.call('HGET', job, 'opts') or '')
  local value = readable and type(opts) == 'table' and opts[member]
  if value ~= cjson.null and value ~= false then
    return value
  end
end

-- Whether the job goes to the taking end. Nearly no job does, so its options are seldom decoded.
local function is_lifo(job)
  local opts = redis.call('HGET', job, 'opts')
  local lifo = opts and string.find(opts, '"lifo"', 1, true) and option(job, 'lifo')
  return lifo and lifo ~= 0 and lifo ~= ''
end

-- Puts a job that was delayed or finished into the line, where adding it would.
local function push_as_added(q, id)
  local job = q.prefix .. id
  push(q, id, number_of(redis.call('HGET', job, 'priority'), 0), is_lifo(job))
end

local function push_retried(q, id)
  redis.call('HDEL', q.prefix .. id, 'finishedOn', 'processedOn', 'failedReason')
  push_as_added(q, id)
end

-- count, age of a retention option; anything unreadable keeps all.
local function retention(job, member)
  local function limit(value)
    local n = number_of(value ~= cjson.null and value, -1)
    -- Whole, since a fraction of a job is none; -1 also for what is no number.
    return n >= 0 and math.floor(math.min(n, 2 ^ 40)) or -1
  end
  local keep = option(job, member)
  if keep == true or keep == 'true' then
    return 0, -1
  elseif type(keep) == 'table' then
    return limit(keep.count), limit(keep.age)
  end
  return limit(keep), -1
end

-- Forgets that the rate limit put `id` off.
local function forget_limited(q, id)
  local index = q.prefix .. 'limiter:index'
  local limited = redis.pcall('HGET', index, id)
  if type(limited) == 'string' then
    redis.call('HDEL', index, id)
    -- What the index names is a set of this queue, or foreign.
    if string.sub(limited, 1, #q.prefix + 7) == q.prefix .. 'limiter' then
      redis.pcall('SREM', limited, id)
    end
  end
end

-- Counts an end in its minute (wire format 6.18), when `most` minutes are to be kept. Keys of the wrong type are let be: numbers are
-- no reason to refuse the end of a job.
local function count_end(q, ends, now, most)
  local key = q.prefix .. 'metrics:' .. ends
  local data = key .. ':data'
  if most <= 0 or is_wrong(key, 'hash') or is_wrong(data, 'list') then
    return
  end
  local count = redis.pcall('HINCRBY', key, 'count', 1)
  if type(count) == 'table' then
    return
  end
  local last = tonumber(redis.call('HGET', key, 'prevTS') or '')
  if not last then
    redis.call('HSET', key, 'prevTS', now, 'prevCount', 0)
    return
  end
  local minutes = math.min(math.floor(tonumber(now) / 60000) - math.floor(last / 60000), most)
  if minutes > 0 then
    local before = number_of(redis.call('HGET', key, 'prevCount'), 0)
    redis.call('LPUSH', data, string.format('%.0f', count - 1 - before))
    for _ = 2, minutes do
      redis.call('LPUSH', data, 0)
    end
    redis.call('LTRIM', data, 0, most - 1)
    redis.call('HSET', key, 'prevTS', now, 'prevCount', string.format('%.0f', count - 1))
  end
end
