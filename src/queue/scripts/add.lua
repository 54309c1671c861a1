-- Adds jobs, all at once (wire format 6.1).
--
-- KEYS  1-11 the queue
-- ARGV  1-3 header, then ten for each job (see `insert`)
-- before: no key of that id          after: each job is in wait, paused or delayed
-- answers {0, what, id, what, id ...}, `what` as `insert` returns it
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = is_wrong_counter(q) or is_wrong(line_of(q), 'list')
for first = 4, #ARGV, 10 do
  wrong = wrong or tonumber(ARGV[first + 5]) > 0 and is_wrong(q.delayed, 'zset')
    or tonumber(ARGV[first + 6]) > 0 and is_wrong(q.priority, 'zset') or nil
end
if wrong then
  return {WRONG_TYPE, wrong}
end
local answer = {0}
for first = 4, #ARGV, 10 do
  local id, what = insert(q, first)
  table.insert(answer, what)
  table.insert(answer, id)
end
return answer
