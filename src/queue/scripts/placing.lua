-- Putting jobs into the line or the delayed set.

local function open_queue(first, prefix, publisher)
  local q = open_line(first, prefix, publisher)
  q.paused, q.delayed, q.counter = KEYS[first + 6], KEYS[first + 7], KEYS[first + 8]
  q.failed, q.repeats = KEYS[first + 9], KEYS[first + 10]
  return q
end

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
  q.line = q.line or redis.call('EXISTS', q.pause_flag) == 1 and q.paused or q.wait
  return q.line
end

-- Puts `id` into the line: after all that have a lower or equal priority number, at the taking end for lifo, else last.
local function push(q, id, priority, lifo)
  local line = line_of(q)
  if priority > 0 then
    redis.call('ZADD', q.priority, priority, id)
    local ahead = redis.call('ZCOUNT', q.priority, 0, priority) - 1
    if ahead <= 1000 then
      -- LINSERT looks for its place from the other end, past all that wait.
      local moved = ahead > 0 and redis.call('RPOP', line, ahead) or {}
      redis.call('RPUSH', line, id)
      for i = #moved, 1, -1 do
        redis.call('RPUSH', line, moved[i])
      end
      return
    end
    local pivot = redis.call('LINDEX', line, math.max(0, redis.call('LLEN', line) - ahead))
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
-- Returns the id and 1; or that of a job which is there already and 0 (the id is taken) or 2 (it holds the debounce). Or
-- nil and the key that is of the wrong type, where `add` asks for a plain job without looking at types before.
local function insert(q, first)
  local id, timestamp, delay, priority = ARGV[first], ARGV[first + 4], tonumber(ARGV[first + 5]), tonumber(ARGV[first + 6])
  local counter = redis.pcall('INCR', q.counter)
  if type(counter) == 'table' then
    if is_wrong_counter(q) then
      return nil, q.counter
    end
    -- Refused for another reason: told as Redis tells it.
    counter = redis.call('INCR', q.counter)
  end
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
  if delay <= 0 and priority <= 0 then
    local line = line_of(q)
    local command = ARGV[first + 7] == '1' and 'RPUSH' or 'LPUSH'
    if type(redis.pcall(command, line, id)) == 'table' then
      if is_wrong(line, 'list') then
        return nil, line
      end
      redis.call(command, line, id)
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
    return id, 1
  end
  if priority > 0 then
    push(q, id, priority)
  end
  announce_waiting(q, id)
  return id, 1
end
