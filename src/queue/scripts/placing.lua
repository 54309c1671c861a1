-- Appended to prelude.lua for scripts that put jobs somewhere; those that run for every job do without it.

-- A member of a delayed set is ordered by its due time, then by 12 bits of the job's number (wire format 6.2).
local function delayed_score(due, low)
  return string.format('%.0f', due * 4096 + low % 4096)
end

local function announce_delayed(q, due)
  redis.call('PUBLISH', q.prefix .. 'delayed', string.format('%.17g', due))
end

local function announce_waiting(q, id)
  redis.call('PUBLISH', q.prefix .. 'waiting@' .. q.publisher, id)
end

local function line_of(q)
  return redis.call('EXISTS', q.pause_flag) == 1 and q.paused or q.wait
end

-- Puts `id` into the line: after all that have a lower or equal priority number, at the taking end for lifo, else last.
local function push(q, id, priority, lifo)
  local line = line_of(q)
  if priority > 0 then
    redis.call('ZADD', q.priority, priority, id)
    local ahead = redis.call('ZCOUNT', q.priority, 0, priority) - 1
    local pivot = ahead > 0 and redis.call('LINDEX', line, math.max(0, redis.call('LLEN', line) - ahead))
    if pivot then
      redis.call('LINSERT', line, 'BEFORE', pivot, id)
    else
      redis.call('RPUSH', line, id)
    end
  elseif lifo then
    redis.call('RPUSH', line, id)
  else
    redis.call('LPUSH', line, id)
  end
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

-- The counter when it cannot be counted on: no number, or so great that it might overflow among many; else nil.
local function is_wrong_counter(q)
  local value = redis.pcall('GET', q.counter)
  if type(value) == 'table' or value and value ~= '0' and not (#value <= 18 and string.match(value, '^%-?[1-9]%d*$')) then
    return q.counter
  end
end

-- Holds a debounce for `id`, for `ttl` ms or ('') until the job ends. The id of the job that holds it already, or nil.
local function hold_debounce(q, name, ttl, id)
  local key = q.prefix .. 'de:' .. name
  local held
  if ttl == '' then
    held = redis.call('SET', key, id, 'NX')
  else
    held = redis.call('SET', key, id, 'PX', ttl, 'NX')
  end
  -- What is no text is nobody's debounce.
  if not held and redis.call('TYPE', key).ok == 'string' then
    return redis.call('GET', key)
  end
end

-- Adds a job. `first` is where its ten arguments begin: custom id or '', name, data, opts, timestamp, delay,
-- priority, lifo, debounce or '', its time in ms or ''.
-- Returns the id and 1; or that of a job which is there already and 0 (the id is taken) or 2 (it holds the debounce).
local function insert(q, first)
  local id, timestamp, delay = ARGV[first], ARGV[first + 4], tonumber(ARGV[first + 5])
  local counter = redis.call('INCR', q.counter)
  if id == '' then
    id = string.format('%.0f', counter)
    -- A custom id may have taken the number.
    while redis.call('EXISTS', q.prefix .. id) == 1 do
      counter = redis.call('INCR', q.counter)
      id = string.format('%.0f', counter)
    end
  elseif redis.call('EXISTS', q.prefix .. id) == 1 then
    redis.call('PUBLISH', q.prefix .. 'duplicated@' .. q.publisher, id)
    return id, 0
  end
  local debounce = ARGV[first + 8]
  if debounce ~= '' then
    local holder = hold_debounce(q, debounce, ARGV[first + 9], id)
    if holder then
      redis.call('PUBLISH', q.prefix .. 'debounced@' .. q.publisher, holder)
      return holder, 2
    end
  end
  redis.call('HSET', q.prefix .. id, 'name', ARGV[first + 1], 'data', ARGV[first + 2], 'opts', ARGV[first + 3],
    'timestamp', timestamp, 'delay', ARGV[first + 5], 'priority', ARGV[first + 6])
  if debounce ~= '' then
    redis.call('HSET', q.prefix .. id, 'deid', debounce)
  end
  if delay > 0 then
    local due = tonumber(timestamp) + delay
    redis.call('ZADD', q.delayed, delayed_score(due, counter), id)
    announce_delayed(q, due)
  else
    push(q, id, tonumber(ARGV[first + 6]), ARGV[first + 7] == '1')
    announce_waiting(q, id)
  end
  return id, 1
end
