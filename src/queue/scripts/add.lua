-- Adds a job (wire format 6.1).
--
-- KEYS  1-11 the queue
-- ARGV  1-3 header, 4-11 the job (see `insert`)
-- before: no key of that id          after: the job is in wait, paused or delayed
-- answers {1, id} added, {0, id} a job with that id exists in some state
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local id, added = insert(q, 4)
return {added and 1 or 0, id}
