//go:build pkcs11 && cgo

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
	p11 "github.com/miekg/pkcs11"
)

// maxSessions bounds how many operations the token has at a time, those that
// hang included.
const maxSessions = 16

// A session is one login at the token. It is made once and shared; when the
// token goes away it is dropped, and the next operation makes another.
type session struct {
	ready  chan struct{} // closed when token or err is set
	token  *crypto11.Context
	err    error
	closed sync.Once
}

// A logins is what a token has refused: each wrong PIN counts there, and the
// last one locks it, so that none is ever tried twice.
type logins struct {
	mu  sync.Mutex
	pin string
	err error
}

// session returns the login that is in use, or begins one. It waits for it no
// longer than ctx.
func (k *Keys) session(ctx context.Context) (*session, error) {
	k.mu.Lock()
	s := k.current
	if s == nil {
		s = &session{ready: make(chan struct{})}
		k.current = s
		go k.begin(s, k.former)
		k.former = nil
	}
	k.mu.Unlock()
	select {
	case <-s.ready:
		return s, s.err
	case <-ctx.Done():
		return nil, fmt.Errorf("opening token %s: %w", k.cfg.TokenLabel, ctx.Err())
	}
}

// begin logs in, once former has ended or hung for long: some tokens give the
// handles of a session that ended to the next.
func (k *Keys) begin(s, former *session) {
	defer close(s.ready)
	if former != nil {
		ended := make(chan struct{})
		go func() { former.close(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(k.cfg.Timeout):
		}
	}
	if s.token, s.err = k.connect(); s.err != nil {
		k.drop(s)
	}
}

// drop has the next operation log in afresh.
func (k *Keys) drop(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current == s {
		k.current, k.former = nil, s
	}
}

func (s *session) close() {
	<-s.ready
	s.closed.Do(func() {
		if s.token != nil {
			_ = s.token.Close() // always nil
		}
	})
}

func (k *Keys) connect() (*crypto11.Context, error) {
	pin, err := k.pin()
	if err != nil {
		return nil, err
	}
	token, err := crypto11.Configure(&crypto11.Config{
		Path: k.cfg.Module, TokenLabel: k.cfg.TokenLabel, LoginNotSupported: true, // we log in: it would not look first
		MaxSessions: maxSessions, PoolWaitTimeout: k.cfg.Timeout,
	})
	if err == nil {
		if err = k.login(pin); err != nil {
			_ = token.Close() // always nil
		}
	}
	if err != nil {
		return nil, k.failure("opening token "+k.cfg.TokenLabel, err)
	}
	return token, nil
}

// pin reads the PIN, and refuses one that the token has refused.
func (k *Keys) pin() (string, error) {
	pin, err := readPIN(k.cfg.PINFile)
	if err != nil {
		return "", err
	}
	k.refused.mu.Lock()
	defer k.refused.mu.Unlock()
	if k.refused.err != nil && k.refused.pin == pin {
		return "", k.refused.err
	}
	return pin, nil
}

// login logs in for all sessions of this process, as PKCS#11 has it. It looks
// at the token first, and never spends its last try.
func (k *Keys) login(pin string) error {
	module := p11.New(k.cfg.Module)
	if module == nil {
		return errors.New("the module can't be loaded")
	}
	defer module.Destroy()
	slot, info, err := k.find(module)
	if err != nil {
		return err
	}
	switch {
	case info.Flags&p11.CKF_LOGIN_REQUIRED == 0:
		return nil
	case info.Flags&p11.CKF_USER_PIN_LOCKED != 0:
		return p11.Error(p11.CKR_PIN_LOCKED)
	case info.Flags&p11.CKF_USER_PIN_FINAL_TRY != 0:
		return errors.New("one more wrong PIN would lock it, so none is tried: log in by hand (pkcs11-tool --login --test), then start again")
	}
	session, err := module.OpenSession(slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if err != nil {
		return err
	}
	defer module.CloseSession(session) // crypto11 has one open, which keeps the login
	err = module.Login(session, p11.CKU_USER, pin)
	if errors.Is(err, p11.Error(p11.CKR_USER_ALREADY_LOGGED_IN)) {
		return nil // by another source of this process
	}
	for _, wrong := range []p11.Error{p11.CKR_PIN_INCORRECT, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_INVALID, p11.CKR_PIN_EXPIRED, p11.CKR_PIN_LOCKED} {
		if errors.Is(err, wrong) {
			k.refused.mu.Lock()
			k.refused.pin, k.refused.err = pin, k.failure("opening token "+k.cfg.TokenLabel, err)
			k.refused.mu.Unlock()
		}
	}
	return err
}

// find finds the one token with our label.
func (k *Keys) find(module *p11.Ctx) (slot uint, info p11.TokenInfo, err error) {
	slots, err := module.GetSlotList(true)
	if err != nil {
		return 0, info, err
	}
	found := 0
	for _, s := range slots {
		about, err := module.GetTokenInfo(s)
		if err == nil && about.Label == k.cfg.TokenLabel {
			found, slot, info = found+1, s, about
		}
	}
	if found > 1 {
		return 0, info, fmt.Errorf("%d tokens have that label: give each its own", found)
	}
	if found == 0 {
		return 0, info, p11.Error(p11.CKR_TOKEN_NOT_PRESENT)
	}
	return slot, info, nil
}
