package server

import (
	"cmp"
	"container/heap"
	"container/list"
)

// What somebody in a crowd does says who goes first where another has no place.
type doing int

const (
	idle   doing = iota // goes first
	busy                // goes for one of an address that has fewer
	seated              // stays
)

// A crowd is who is in, so many at most and of one source so many. Where there is no
// place, whoever comes takes that of the source that has most, or of its own where that
// has all it may: of the idle one that has been so for longest. An attacker with a few
// addresses takes its own places then, however often it comes.
type crowd struct {
	all   int
	of    map[string]*party
	rank  parties // those of whom somebody may go, the largest first
	turns uint64
}

// A member is in one crowd, or in none.
type member struct {
	source string
	away   func() // hangs up on it
	gone   bool   // it had to go, or went: it enters no other
	in     *crowd
	does   doing
	at     *list.Element // of its party's; nil where it stays
	turn   uint64        // when it began what it does
}

// A party is who is in of a source.
type party struct {
	all  int
	may  [seated]list.List // who may go, by what they do: who came first is in front
	rank int               // in the crowd's; -1: nobody may go
}

func (p *party) loose() int { return p.may[idle].Len() + p.may[busy].Len() }

// first is who goes first; nil: nobody.
func (p *party) first() *member {
	for i := range p.may {
		if e := p.may[i].Front(); e != nil {
			return e.Value.(*member)
		}
	}
	return nil
}

// enter lets m in, who does that. Whoever has to go for it is out already, and is to
// be hung up on.
func (c *crowd) enter(m *member, does doing, most, mostOf int) (out *member, ok bool) {
	p := c.of[m.source]
	switch {
	case p != nil && p.all >= mostOf:
		if out = p.first(); out == nil || out.does > idle {
			return nil, false
		}
	case c.all >= most:
		if out = c.least(p); out == nil {
			return nil, false
		}
	}
	if out != nil {
		c.leave(out)
		out.gone = true
	}
	if p = c.of[m.source]; p == nil {
		if c.of == nil {
			c.of = make(map[string]*party)
		}
		p = &party{rank: -1}
		c.of[m.source] = p
	}
	c.all++
	p.all++
	m.in = c
	c.place(m, p, does)
	return out, true
}

// least is who goes for one of a party, which may be nil: of the largest. A busy one
// goes for a smaller party's alone: among equals nobody would come to an end.
func (c *crowd) least(of *party) *member {
	if len(c.rank) == 0 {
		return nil
	}
	there := 0
	if of != nil {
		there = of.loose()
	}
	m := c.rank[0].first()
	if m.does > idle && there+1 >= c.rank[0].loose() {
		return nil
	}
	return m
}

// turn has m do something else from now on.
func (c *crowd) turn(m *member, does doing) {
	if m.in != c || m.does == does {
		return
	}
	p := c.of[m.source]
	c.unplace(m, p)
	c.place(m, p, does)
}

// leave lets m out, who may be out.
func (c *crowd) leave(m *member) {
	if m.in != c {
		return
	}
	p := c.of[m.source]
	c.unplace(m, p)
	m.in = nil
	c.all--
	if p.all--; p.all == 0 {
		delete(c.of, m.source)
	}
}

func (c *crowd) place(m *member, p *party, does doing) {
	c.turns++
	m.does, m.turn = does, c.turns
	if does < seated {
		m.at = p.may[does].PushBack(m)
		c.ranked(p)
	}
}

func (c *crowd) unplace(m *member, p *party) {
	if m.at != nil {
		p.may[m.does].Remove(m.at)
		m.at = nil
		c.ranked(p)
	}
}

func (c *crowd) ranked(p *party) {
	switch {
	case p.rank < 0:
		heap.Push(&c.rank, p)
	case p.loose() == 0:
		heap.Remove(&c.rank, p.rank)
	default:
		heap.Fix(&c.rank, p.rank)
	}
}

// parties are a heap: the largest is first, and among equals the one whose first has
// been there for longest.
type parties []*party

func (ps parties) Len() int { return len(ps) }

func (ps parties) Less(i, j int) bool {
	p, q := ps[i], ps[j]
	return cmp.Or(cmp.Compare(q.loose(), p.loose()), cmp.Compare(p.first().turn, q.first().turn)) < 0
}

func (ps parties) Swap(i, j int) {
	ps[i], ps[j] = ps[j], ps[i]
	ps[i].rank, ps[j].rank = i, j
}

// Push implements heap.Interface.
func (ps *parties) Push(p any) {
	p.(*party).rank = len(*ps)
	*ps = append(*ps, p.(*party))
}

// Pop implements heap.Interface.
func (ps *parties) Pop() any {
	last := len(*ps) - 1
	p := (*ps)[last]
	(*ps)[last] = nil
	*ps = (*ps)[:last]
	p.rank = -1
	return p
}
