-- Completes jobs and takes as many others (wire format 6.6): one step for all runs of a worker that end at the same time, since
-- what every call of a script and of a command costs is more than what most of them do.
--
-- KEYS  1-6 the queue, then three for each run: job, lock, order to cancel
-- ARGV  1-3 header, 4 lock in ms of the next runs, then seven for each run: id, token, result as JSON, message, count and age to
--       keep, token of the next run
-- before: jobs active, each locked by its token
-- after:  those in completed (or gone, by their retention); for each of them another one active, locked by the other token
-- answers {0, one answer for each run}: {refusal}, or as `take_next`; {0} as well when the next one cannot be taken for an error
local q = open_line(1, ARGV[1], ARGV[2])
local now, lock = ARGV[3], ARGV[4]
local runs = (#KEYS - 6) / 3
local locks, answers = {}, {0}
for run = 1, runs do
  locks[run] = KEYS[5 + 3 * run]
end
local owners = redis.call('MGET', unpack(locks))
-- Runs that own their job, their ids, and the debounces to release.
local own, ids, debounces = {}, {}, {}
for run = 1, runs do
  local job, at = KEYS[4 + 3 * run], 7 * run - 2
  local known = redis.pcall('HMGET', job, 'timestamp', 'deid')
  if known.err or not known[1] and not is_hash(job) then
    answers[1 + run] = {MISSING}
  elseif owners[run] ~= ARGV[at + 1] then
    answers[1 + run] = {owners[run] and OTHER_LOCK or NO_LOCK}
  else
    own[#own + 1], ids[#ids + 1], debounces[run] = run, ARGV[at], known[2]
  end
end
if #own == 0 then
  return answers
end
-- An id less in stalled is harmless, should the next step be refused.
local unmarked = redis.pcall('SREM', q.stalled, unpack(ids))
if type(unmarked) == 'table' then
  return is_wrong(q.stalled, 'set') and {WRONG_TYPE, q.stalled} or unmarked
end
-- Those that were active, and what is to be kept of them, as ZADD wants it.
local left, kept = {}, {}
for i, id in ipairs(ids) do
  local removed = redis.pcall('LREM', q.active, -1, id)
  if type(removed) == 'table' then
    return is_wrong(q.active, 'list') and {WRONG_TYPE, q.active} or removed
  elseif removed == 0 then
    answers[1 + own[i]] = {NOT_ACTIVE}
  else
    left[#left + 1] = id
    if ARGV[7 * own[i] + 2] ~= '0' then
      kept[#kept + 1], kept[#kept + 2] = now, id
    end
  end
end
local stored = #kept > 0 and redis.pcall('ZADD', q.completed, unpack(kept))
if type(stored) == 'table' then
  redis.call('LPUSH', q.active, unpack(left))
  return is_wrong(q.completed, 'zset') and {WRONG_TYPE, q.completed} or stored
end
local over = {}
for _, run in ipairs(own) do
  over[#over + 1], over[#over + 2] = locks[run], KEYS[6 + 3 * run]
end
redis.call('DEL', unpack(over))
-- While the queue is paused, nothing is in wait.
local more = true
for _, run in ipairs(own) do
  if not answers[1 + run] then
    local at = 7 * run - 2
    local count = ARGV[at + 4]
    if debounces[run] then
      release_debounce(q, ARGV[at], debounces[run])
    end
    if count == '0' then
      forget(q.prefix, ARGV[at])
    else
      redis.call('HSET', KEYS[4 + 3 * run], 'returnvalue', ARGV[at + 2], 'finishedOn', now)
      retain(q, q.completed, tonumber(now), tonumber(count), tonumber(ARGV[at + 5]))
    end
    redis.call('PUBLISH', q.prefix .. 'completed', ARGV[at + 3])
    local answer = more and take_next(q, ARGV[at + 6], lock, now) or {0}
    more = answer[1] == 2
    answers[1 + run] = answer.err and {0} or answer
  end
end
return answers
