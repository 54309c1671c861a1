-- Completes jobs and takes as many others (wire format 6.6): one step for all runs of a worker that end at the same time, since
-- what every call of a script and of a command costs is more than what most of them do. So what can be asked or done for all of
-- them at once is.
--
-- KEYS  1-6 the queue, then three for each run: job, lock, order to cancel
-- ARGV  1-3 header, 4 lock in ms of the next runs, then eight for each run: id, token, result as JSON, message, count and age to
--       keep, debounce or '', token of the next run
-- before: jobs active, each locked by its token
-- after:  those in completed (or gone, by their retention); for each of them another one active, locked by the other token
-- answers {0, one answer for each run, then the fields of each job taken}. An answer is a refusal, the id of the next job, or 0:
--         nothing more waits, or cannot be taken for an error. (Flat, since tables in tables cost most of an answer.)
local q = open_line(1, ARGV[1], ARGV[2])
local now, lock = ARGV[3], ARGV[4]
local runs = (#KEYS - 6) / 3
local jobs, locks, answers = {}, {}, {0}
for run = 1, runs do
  jobs[run], locks[run] = KEYS[4 + 3 * run], KEYS[5 + 3 * run]
end
local wrong = is_wrong(q.completed, 'zset')
if wrong then
  return {WRONG_TYPE, wrong}
end
local owners = redis.call('MGET', unpack(locks))
local all = redis.call('EXISTS', unpack(jobs)) == runs
-- Runs that own their job, and the ids.
local own, ids = {}, {}
for run = 1, runs do
  if not all and redis.call('EXISTS', jobs[run]) == 0 then
    answers[1 + run] = MISSING
  elseif owners[run] ~= ARGV[8 * run - 2] then
    answers[1 + run] = owners[run] and OTHER_LOCK or NO_LOCK
  else
    own[#own + 1], ids[#ids + 1] = run, ARGV[8 * run - 3]
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
-- Those that were active, what is to be kept of them, as ZADD wants it, and what ends with them.
local ended, kept, over, tokens = {}, {}, {}, {}
for i, run in ipairs(own) do
  local id, at = ids[i], 8 * run - 3
  local removed = redis.pcall('LREM', q.active, -1, id)
  if type(removed) == 'table' then
    return is_wrong(q.active, 'list') and {WRONG_TYPE, q.active} or removed
  elseif removed == 0 then
    answers[1 + run] = NOT_ACTIVE
    redis.call('DEL', locks[run], KEYS[6 + 3 * run])
  elseif ARGV[at + 4] == '0' then
    forget(q.prefix, id)
    ended[#ended + 1] = run
  elseif type(redis.pcall('HSET', jobs[run], 'returnvalue', ARGV[at + 2], 'finishedOn', now)) == 'table' then
    -- Something else than a job, by now.
    redis.call('LPUSH', q.active, id)
    answers[1 + run] = MISSING
  else
    ended[#ended + 1], kept[#kept + 1], kept[#kept + 2] = run, now, id
  end
end
if #kept > 0 then
  redis.call('ZADD', q.completed, unpack(kept))
end
for i, run in ipairs(ended) do
  local at = 8 * run - 3
  over[2 * i - 1], over[2 * i], tokens[i] = locks[run], KEYS[6 + 3 * run], ARGV[at + 7]
  if ARGV[at + 6] ~= '' then
    release_debounce(q, ARGV[at], ARGV[at + 6])
  end
  if ARGV[at + 4] ~= '-1' or ARGV[at + 5] ~= '-1' then
    retain(q, q.completed, tonumber(now), tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]))
  end
  redis.call('PUBLISH', q.prefix .. 'completed', ARGV[at + 3])
end
if #ended == 0 then
  return answers
end
redis.call('DEL', unpack(over))
-- While the queue is paused, nothing is in wait.
local taken = take_next(q, tokens, lock, now)
for i, run in ipairs(ended) do
  answers[1 + run] = taken[i] or 0
end
for i, id in ipairs(taken) do
  answers[1 + runs + i] = fields_of(q.prefix .. id) or {}
end
return answers
