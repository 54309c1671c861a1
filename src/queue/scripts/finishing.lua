-- What finished jobs leave behind.

local function forget(prefix, id)
  redis.call('DEL', prefix .. id, prefix .. id .. ':logs')
end

-- Ends the debounce `name` of a job that is removed, unless another job holds it by now, which Bull does not ask.
local function drop_debounce(q, id, name)
  local key = q.prefix .. 'de:' .. name
  if redis.call('TYPE', key).ok == 'string' and redis.call('GET', key) == id then
    redis.call('DEL', key)
  end
end

-- The debounce `name` ends with the end of its job unless it has an expiry.
local function release_debounce(q, id, name)
  if redis.call('PTTL', q.prefix .. 'de:' .. name) == -1 then
    drop_debounce(q, id, name)
  end
end

-- Deletes finished jobs older than `age` seconds and beyond the newest `count` (below 0: no limit), at most a thousand for
-- each reason: the rest goes as others finish, and Redis serves others meanwhile.
local function retain(q, finished, now, count, age)
  local function drop(ids)
    for _, id in ipairs(ids) do
      forget(q.prefix, id)
    end
    if #ids > 0 then
      redis.call('ZREMRANGEBYRANK', finished, 0, #ids - 1)
    end
  end
  if age >= 0 then
    drop(redis.call('ZRANGEBYSCORE', finished, '-inf', string.format('%.0f', now - age * 1000), 'LIMIT', 0, 1000))
  end
  if count > 0 then
    local surplus = redis.call('ZCARD', finished) - count
    if surplus > 0 then
      drop(redis.call('ZRANGE', finished, 0, math.min(surplus, 1000) - 1))
    end
  end
end
